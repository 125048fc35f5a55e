# $1: how many versions there will be. Before the files come, since some are the group's.
getent group aegiskv >/dev/null || groupadd --system aegiskv || exit 1
getent passwd aegiskv >/dev/null ||
    useradd --system --gid aegiskv --home-dir /var/lib/aegiskv --no-create-home \
        --shell /sbin/nologin --comment AegisKV aegiskv || exit 1
