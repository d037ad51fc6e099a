-- Evaluation: sets of questions as they were frozen to a corpus, runs over them, and what came of each question.

create table eval_sets (
    id         bigint generated always as identity primary key,
    tenant_id  integer not null default nullif(current_setting('orchestrator.tenant_id', true), '')::integer
               references tenants (id) on delete cascade,
    name       text not null check (name <> ''),
    sha256     text not null,                                  -- of all that is asked and judged
    collection text not null,
    corpus     text not null,                                  -- hash of every version that counted, and of how it is searched
    items      text not null,                                  -- JSON lines as `eval run` reads them
    faults     text not null default '[]',                     -- JSON: rows that could not be read; they count as wrong
    snapshot   text not null default '{}',                     -- JSON: document to the hash of the text that held
    frozen_at  timestamptz not null default now(),
    unique (tenant_id, sha256, collection, corpus),
    unique (id, tenant_id)
);

create table eval_runs (
    id          text primary key,
    tenant_id   integer not null default nullif(current_setting('orchestrator.tenant_id', true), '')::integer,
    set_id      bigint not null,
    name        text not null check (name <> ''),
    stamp       text not null,                                 -- hash of all that enters an answer beside the question
    system      text not null,                                 -- JSON: what the stamp is the hash of
    started_at  timestamptz not null default now(),
    finished_at timestamptz,
    unique (id, tenant_id),
    foreign key (set_id, tenant_id) references eval_sets (id, tenant_id) on delete cascade
);
create index eval_runs_key on eval_runs (tenant_id, set_id, stamp, name);

-- A passage is kept as where it stands: its text stays in the knowledge layer, and goes when it is erased there.
create table eval_results (
    tenant_id integer not null default nullif(current_setting('orchestrator.tenant_id', true), '')::integer,
    run_id    text not null,
    item_id   text not null,
    key       text not null,                                   -- hash of the question and of the stamp
    outcome   text not null,                                   -- JSON
    score     text not null,                                   -- JSON, as it was judged with the passages at hand
    reusable  boolean not null,                                -- false for a failure that another day might not have
    at        timestamptz not null default now(),
    primary key (tenant_id, run_id, item_id),
    foreign key (run_id, tenant_id) references eval_runs (id, tenant_id) on delete cascade
);
create index eval_results_key on eval_results (tenant_id, key) where reusable;

do $$
declare
    name text;
begin
    foreach name in array array['eval_sets', 'eval_runs', 'eval_results'] loop
        -- The sub-select is run once for a statement, a bare current_setting() once for a row.
        execute format('create policy tenant_only on %I
                        using (tenant_id = (select nullif(current_setting(''orchestrator.tenant_id'', true), '''')::integer))
                        with check (tenant_id = (select nullif(current_setting(''orchestrator.tenant_id'', true), '''')::integer))',
                       name);
        execute format('alter table %I enable row level security, force row level security', name);
    end loop;
end $$;
select grant_to_application();
