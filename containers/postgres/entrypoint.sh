#!/bin/sh
# Makes the cluster at the first start, under another name until it is whole, then serves it.
set -eu

if [ ! -d "$PGDATA" ]; then
    : "${POSTGRES_USER:?}" "${POSTGRES_PASSWORD:?}" "${POSTGRES_DB:?}"
    new="$PGDATA.new"
    rm -rf "$new"
    password=$(mktemp)
    printf '%s\n' "$POSTGRES_PASSWORD" > "$password"
    initdb --pgdata="$new" --username="$POSTGRES_USER" --pwfile="$password" --encoding=UTF8 --locale=C.UTF-8 \
        --auth-local=trust --auth-host=scram-sha-256
    rm "$password"
    printf 'host all all all scram-sha-256\n' >> "$new/pg_hba.conf"
    printf 'CREATE DATABASE "%s"\n' "$POSTGRES_DB" | postgres --single -D "$new" postgres
    mv "$new" "$PGDATA"
fi
exec postgres -c listen_addresses='*'
