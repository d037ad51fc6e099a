-- Statements of migrate.py.

-- name: has-migrations
select to_regclass('schema_migrations') is not null as found;

-- name: create-migrations
create table if not exists schema_migrations (
    name       text primary key,
    sha256     text not null,
    applied_at timestamptz not null default now()
);

-- name: applied-migrations
select name, sha256 from schema_migrations order by name;

-- name: lock-migrations
select pg_advisory_xact_lock(hashtextextended('orchestrator migrations', 0));

-- name: limit-lock-wait
select set_config('lock_timeout', '2s', true);

-- name: record-migration
insert into schema_migrations (name, sha256) values (%(name)s, %(sha256)s);

-- name: pgvector-version
-- The installed version when there is one, else the one that `create extension` would install.
select coalesce(installed_version, default_version) as version from pg_available_extensions where name = 'vector';
