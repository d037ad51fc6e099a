-- Adapters in service: canaries with what their two arms showed, and an append-only record of every change of state.
create unique index adapters_one_canary on adapters (tenant, name) where state = 'canary';

alter table adapters add column activated_at timestamptz;      -- when it last became active; null: never
update adapters set activated_at = changed_at where state = 'active' or state = 'candidate' and changed_at > created_at;

create table canaries (
    id         bigint generated always as identity primary key,
    tenant     text not null default nullif(current_setting('orchestrator.tenant', true), ''),
    name       text not null,
    digest     text not null,                                  -- of the adapter that is tried out
    against    text not null,                                  -- digest of the one that was active when it began
    share      double precision not null check (share > 0 and share < 1),
    rules      jsonb not null,                                 -- the [canary] part of the gate's rules when it began
    started_at timestamptz not null default clock_timestamp(),
    ended_at   timestamptz,
    ended      text check (ended in ('promoted', 'rolled_back', 'stopped')),
    reason     text,
    check ((ended is null) = (ended_at is null)),
    unique (id, tenant)
);
create unique index canaries_one_running on canaries (tenant, name) where ended is null;

-- One row per conversation (unit), not per answer: answers of one conversation are no independent trials.
create table canary_units (
    canary_id  bigint not null,
    tenant     text not null default nullif(current_setting('orchestrator.tenant', true), ''),
    unit       text not null,                                  -- seeded hash: no word and no name of a user
    arm        text not null check (arm in ('canary', 'active')),
    answers    integer not null,
    violations integer not null,
    refusals   integer not null,
    uncited    integer not null,
    slow       integer not null,
    timed      integer not null,                               -- answers whose latency may be compared
    model_ms   double precision not null,                      -- their sum
    primary key (canary_id, unit),
    foreign key (canary_id, tenant) references canaries (id, tenant) on delete cascade
);

create table behaviour_audit (
    id      bigint generated always as identity primary key,
    tenant  text not null default nullif(current_setting('orchestrator.tenant', true), ''),
    at      timestamptz not null default clock_timestamp(),
    actor   text not null,
    action  text not null,
    name    text not null,
    digest  text not null,
    config  text not null,                                     -- sha256 of routes, prompts, contracts and gate rules then
    details jsonb not null
);
create index behaviour_audit_adapter on behaviour_audit (tenant, name, id);
create trigger behaviour_audit_append_only before update or delete on behaviour_audit
    for each row execute function refuse_change();
create trigger behaviour_audit_no_truncate before truncate on behaviour_audit
    for each statement execute function refuse_change();

do $$
declare
    name text;
begin
    foreach name in array array['canaries', 'canary_units', 'behaviour_audit'] loop
        execute format('create policy tenant_only on %I
                        using (tenant = (select nullif(current_setting(''orchestrator.tenant'', true), '''')))
                        with check (tenant = (select nullif(current_setting(''orchestrator.tenant'', true), '''')))', name);
        execute format('alter table %I enable row level security, force row level security', name);
    end loop;
    if exists (select from pg_roles where rolname = 'orchestrator_app') then
        grant select, insert, update, delete on canaries, canary_units, behaviour_audit to orchestrator_app;
        grant usage, select on all sequences in schema public to orchestrator_app;
        revoke update, delete on behaviour_audit from orchestrator_app;
    end if;
end $$;
