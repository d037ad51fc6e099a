-- Behaviour layer: adapters, and the content-addressed prompts and contracts that an old answer is rebuilt from.
create table prompts (
    digest     text primary key,
    name       text not null,
    body       text not null,
    created_at timestamptz not null default now()
);

create table contracts (
    digest     text primary key,
    name       text not null,
    body       text not null,
    created_at timestamptz not null default now()
);

create table adapters (
    id              bigint generated always as identity primary key,
    tenant          text not null default 'default',
    name            text not null,
    digest          text not null,                             -- sha256 of the adapter's files
    path            text not null,
    base            text not null,
    rank            integer not null check (rank > 0),
    prompt          text not null,
    prompt_digest   text not null,
    contract        text not null,
    contract_digest text not null,
    manifest        jsonb not null,
    state           text not null default 'candidate' check (state in ('candidate', 'canary', 'active', 'retired')),
    created_at      timestamptz not null default now(),
    changed_at      timestamptz not null default now(),
    unique (tenant, name, digest)
);
create unique index adapters_one_active on adapters (tenant, name) where state = 'active';
