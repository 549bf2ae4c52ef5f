#!/bin/sh
# Runs WordPress' own installer: install.sh URL [TITLE]
# The account is admin with ADMIN_PASSWORD (default: offshoot-demo).
set -eu
url=${1:?usage: install.sh URL [TITLE]}
title=${2:-A blog}
password=${ADMIN_PASSWORD:-offshoot-demo}

# The password goes over a file that only we can read, so that it is in no process list.
secret=$(mktemp)
trap 'rm -f "$secret"' EXIT
printf '%s' "$password" > "$secret"
answer=$(curl --silent --show-error --fail-with-body --max-time 60 \
    --data-urlencode "weblog_title=$title" \
    --data 'user_name=admin' \
    --data-urlencode "admin_password@$secret" \
    --data-urlencode "admin_password2@$secret" \
    --data 'pw_weak=on' \
    --data 'admin_email=admin@example.test' \
    --data 'blog_public=0' \
    "$url/wp-admin/install.php?step=2")
case $answer in
    *Success*) echo "WordPress is installed at $url" ;;
    *"already installed"* | *"Already Installed"*) echo "WordPress was installed at $url before" ;;
    *) echo "The installer did not succeed:" >&2; printf '%s\n' "$answer" | sed 's/<[^>]*>//g' | grep . | head -n 20 >&2; exit 1 ;;
esac
