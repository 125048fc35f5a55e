import signal


def pytest_configure():
    # As Ctrl-C does: what tests have started is ended before pytest is.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
