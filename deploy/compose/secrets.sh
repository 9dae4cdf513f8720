#!/bin/sh
# Makes the secrets of docker-compose.yml that are not there yet. Files of Compose keep the owner and mode that they have
# here, and the containers run as other users: so the files can be read, and the folder only by you.
#
# Usage: secrets.sh [FOLDER]
set -eu

folder=${1:-$(dirname "$0")/secrets}
mkdir -p "$folder"
chmod 0700 "$folder"
for name in postgres_password pgtrickle_password app_password http_token grafana_password; do
    if [ ! -s "$folder/$name" ]; then
        od -An -N24 -tx1 /dev/urandom | tr -d ' \n' > "$folder/$name"
        chmod 0444 "$folder/$name"
    fi
done
