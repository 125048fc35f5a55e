# $1: how many versions are left. The node is not restarted by an upgrade.
if [ "$1" -eq 0 ] && [ -d /run/systemd/system ]; then
    systemctl daemon-reload || :
fi
