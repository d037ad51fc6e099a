-- Erased documents: what is kept of them is a receipt without a word of theirs, and nothing brings them back by itself.
create table erasures (
    id            bigint generated always as identity primary key,
    tenant_id     integer not null default nullif(current_setting('orchestrator.tenant_id', true), '')::integer,
    collection_id bigint not null references collections (id) on delete cascade,
    document_id   uuid not null,
    name_sha256s  text[] not null,                             -- of the external id, and of those that it had before
    text_sha256s  text[] not null,                             -- of the versions
    chunks        bigint not null,
    erased_at     timestamptz not null default now(),
    purged_at     timestamptz,                                 -- when no relation file held it any more
    permitted_at  timestamptz                                  -- when somebody allowed the name again
);
create index erasures_collection on erasures (collection_id) where permitted_at is null;
create policy tenant_only on erasures
    using (tenant_id = (select nullif(current_setting('orchestrator.tenant_id', true), '')::integer))
    with check (tenant_id = (select nullif(current_setting('orchestrator.tenant_id', true), '')::integer));
alter table erasures enable row level security, force row level security;

create function refuse_erased() returns trigger language plpgsql as $$
begin
    if exists (select from erasures e where e.collection_id = new.collection_id and e.permitted_at is null
               and encode(sha256(convert_to(new.external_id, 'UTF8')), 'hex') = any (e.name_sha256s)) then
        raise exception 'the document % was erased; to take it in again: orchestrator documents permit %',
            quote_literal(new.external_id), quote_literal(new.external_id) using errcode = 'data_exception';
    end if;
    return new;
end $$;
create trigger refuse_erased before insert or update of external_id on documents for each row execute function refuse_erased();
