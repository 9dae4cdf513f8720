#!/bin/sh
# Roles of a new database: the sidecar's (LOGIN and REPLICATION, nothing else) and the application's, with its schema.
# Run once by the image of PostgreSQL, as its superuser, in the database POSTGRES_DB.
set -eu

SECRETS=${SECRETS:-/run/secrets}
export SECRETS
psql --no-psqlrc --quiet --set=ON_ERROR_STOP=1 --username="$POSTGRES_USER" --dbname="$POSTGRES_DB" << 'SQL'
\set sidecar_password `cat "$SECRETS/pgtrickle_password"`
\set app_password `cat "$SECRETS/app_password"`
create role pgtrickle login replication password :'sidecar_password';
create role app login password :'app_password';
create schema app authorization app;
-- What the sidecar may read. There is no "all tables" of other roles on purpose.
grant usage on schema app to pgtrickle;
alter default privileges for role app in schema app grant select on tables to pgtrickle;
SQL
