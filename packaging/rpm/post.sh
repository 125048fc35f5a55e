# $1: how many versions there are now.
for directory in /etc/aegiskv /etc/aegiskv/conf.d; do
    if [ "$(stat -c %U:%G "$directory")" = root:root ]; then
        chgrp aegiskv "$directory"
        chmod 0750 "$directory"
    fi
done
if command -v systemd-tmpfiles >/dev/null; then
    systemd-tmpfiles --create aegiskv.conf || :
fi

# A token that nobody has seen, for the configuration as it comes. Whoever takes it away later
# means it.
if [ "$1" -eq 1 ] && [ ! -e /etc/aegiskv/token ]; then
    rm -f /etc/aegiskv/token.new
    (umask 077 && aegiskv token >/etc/aegiskv/token.new) &&
        chgrp aegiskv /etc/aegiskv/token.new &&
        chmod 0640 /etc/aegiskv/token.new &&
        mv /etc/aegiskv/token.new /etc/aegiskv/token
fi

command -v systemctl >/dev/null || exit 0
if [ "$1" -eq 1 ]; then
    # Whether it starts with the machine is up to the distribution's presets.
    systemctl --no-reload preset aegiskv.service || :
fi
[ -d /run/systemd/system ] || exit 0
systemctl daemon-reload || :
if [ "$1" -eq 1 ]; then
    echo "aegiskv: to start it now and with the machine: systemctl enable --now aegiskv"
elif systemctl --quiet is-active aegiskv.service; then
    echo "aegiskv: the old version is still running; to change over: systemctl restart aegiskv"
fi
