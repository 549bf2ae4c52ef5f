#!/bin/sh
# Logs in as admin and publishes a post: publish.sh URL TITLE [TEXT]
# Prints the post's address.
set -eu
url=${1:?usage: publish.sh URL TITLE [TEXT]}
title=${2:?usage: publish.sh URL TITLE [TEXT]}
text=${3:-Written by publish.sh.}
export ADMIN_PASSWORD="${ADMIN_PASSWORD:-offshoot-demo}"

cookies=$(mktemp)
trap 'rm -f "$cookies"' EXIT
request() {
    curl --silent --show-error --fail --max-time 30 --cookie "$cookies" --cookie-jar "$cookies" "$@"
}
request --output /dev/null "$url/wp-login.php"
# The password goes over standard input, so that it is in no process list.
printf '%s' "$ADMIN_PASSWORD" | request --output /dev/null \
    --data 'log=admin' --data-urlencode 'pwd@-' --data 'testcookie=1' "$url/wp-login.php"
nonce=$(request "$url/wp-admin/admin-ajax.php?action=rest-nonce")
request --header "X-WP-Nonce: $nonce" \
    --data-urlencode "title=$title" --data-urlencode "content=$text" --data 'status=publish' \
    "$url/?rest_route=/wp/v2/posts&_fields=link" | sed 's/.*"link":"\([^"]*\)".*/\1/; s/\\//g'
echo
