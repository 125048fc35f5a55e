# $1: how many versions will be left.
if [ "$1" -eq 0 ] && command -v systemctl >/dev/null; then
    if [ -d /run/systemd/system ]; then
        systemctl --no-reload disable --now aegiskv.service || :
    else
        systemctl --no-reload disable aegiskv.service || :
    fi
fi
