-- A collection may hold vectors of several embedders: one serves, another is filled beside it or kept for the way back.
create table collection_spaces (
    collection_id bigint not null references collections (id) on delete cascade,
    space         text not null,
    tenant_id     integer not null default nullif(current_setting('orchestrator.tenant_id', true), '')::integer,
    dimensions    integer not null check (dimensions > 0),
    created_at    timestamptz not null default now(),
    switched_at   timestamptz,                                 -- when it last began to serve
    judged        jsonb not null default '{}',                 -- its figures beside those of the space that served
    primary key (collection_id, space)
);
create policy tenant_only on collection_spaces
    using (tenant_id = (select nullif(current_setting('orchestrator.tenant_id', true), '')::integer))
    with check (tenant_id = (select nullif(current_setting('orchestrator.tenant_id', true), '')::integer));
alter table collection_spaces enable row level security, force row level security;
insert into collection_spaces (collection_id, space, tenant_id, dimensions, switched_at)
select id, embedding_space, tenant_id, dimensions, created_at from collections;
