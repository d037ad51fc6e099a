-- Jobs: work that outlives the process that asked for it. Leased by workers, so that a dead one's job is taken by another.
create table jobs (
    id          uuid primary key default gen_random_uuid(),
    tenant_id   integer not null default nullif(current_setting('orchestrator.tenant_id', true), '')::integer
                references tenants (id) on delete cascade,
    kind        text not null check (kind in ('ingest')),
    payload     jsonb not null,
    key         text check (key <> ''),                        -- of the caller: the same key is the same job
    digest      text not null,                                 -- of kind and payload: the same key with another one is refused
    state       text not null default 'queued' check (state in ('queued', 'running', 'done', 'failed', 'dead', 'cancelled')),
    attempts    integer not null default 0,                    -- how often it was taken
    stalls      integer not null default 0,                    -- how often in a row without getting further
    run_after   timestamptz not null default now(),            -- a failed one waits until then
    leased_by   text,
    lease_until timestamptz,
    progress    jsonb not null default '{}',
    in_work     text[] not null default '{}',                  -- documents that are being embedded now
    crashes     jsonb not null default '{}',                   -- document to how many workers died while it was in work
    error       text,
    created_at  timestamptz not null default now(),
    asked_at    timestamptz not null default now(),            -- created, or asked for again
    started_at  timestamptz,
    finished_at timestamptz,
    unique (tenant_id, key),
    check ((state = 'running') = (leased_by is not null and lease_until is not null))
);
create index jobs_open on jobs (tenant_id, run_after) where state in ('queued', 'running', 'failed');

-- What of a job could not be done, while all the rest was.
create table dead_letters (
    id         bigint generated always as identity primary key,
    tenant_id  integer not null default nullif(current_setting('orchestrator.tenant_id', true), '')::integer,
    job_id     uuid not null references jobs (id) on delete cascade,
    source     text not null,                                  -- the file, URL or document
    line       integer not null default 0,                     -- of the file, from 1; 0: all of it
    reason     text not null,
    attempts   integer not null default 1,                     -- how often it was tried
    created_at timestamptz not null default now(),
    unique (job_id, source, line)
);

do $$
declare
    name text;
begin
    foreach name in array array['jobs', 'dead_letters'] loop
        -- The sub-select is run once for a statement, a bare current_setting() once for a row.
        execute format('create policy tenant_only on %I
                        using (tenant_id = (select nullif(current_setting(''orchestrator.tenant_id'', true), '''')::integer))
                        with check (tenant_id = (select nullif(current_setting(''orchestrator.tenant_id'', true), '''')::integer))',
                       name);
        execute format('alter table %I enable row level security, force row level security', name);
    end loop;
end $$;
