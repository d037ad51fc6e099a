-- Tenants: every row of the knowledge layer and of the ledger belongs to one, and PostgreSQL itself keeps them apart.
-- The policies hold for the owner too (force); the application works under a role that owns nothing.

create table tenants (
    id         integer generated always as identity primary key,
    name       text not null unique check (name <> ''),
    created_at timestamptz not null default now(),
    removed_at timestamptz                                     -- its ledger stays, so its name is never given again
);
insert into tenants (name)
select tenant from collections union select tenant from answers union select tenant from adapters union select 'default'
order by 1;

-- Which tenant the transaction works for. Both settings end with the transaction, so a pooled connection keeps neither.
-- Fails for a name that is no tenant's, and where no policy would hold: a superuser passes all of them.
create function use_tenant(tenant text, as_owner boolean default false) returns integer language plpgsql stable as $$
declare
    found integer;
begin
    if not as_owner and not row_security_active('collections') then
        raise exception 'row level security does not hold for the login %', session_user
            using errcode = 'insufficient_privilege', table = 'tenants';
    end if;
    perform set_config('orchestrator.tenant', tenant, true);
    select t.id into found from tenants t where t.name = tenant and t.removed_at is null;
    if found is null then
        raise exception 'there is no tenant %', tenant using errcode = 'no_data_found', table = 'tenants';
    end if;
    perform set_config('orchestrator.tenant_id', found::text, true);
    return found;
end $$;

create function current_tenant() returns integer language sql stable as
    $$ select nullif(current_setting('orchestrator.tenant_id', true), '')::integer $$;

alter table collections add column tenant_id integer references tenants (id) on delete cascade;
update collections c set tenant_id = t.id from tenants t where t.name = c.tenant;
alter table collections drop constraint collections_tenant_name_key, drop column tenant, add unique (tenant_id, name);

alter table documents add column tenant_id integer;
update documents d set tenant_id = c.tenant_id from collections c where c.id = d.collection_id;
-- A document is of its collection's tenant, also where a statement names another's collection.
alter table collections add unique (id, tenant_id);
alter table documents drop constraint documents_collection_id_fkey,
    add foreign key (collection_id, tenant_id) references collections (id, tenant_id) on delete cascade;
alter table versions add column tenant_id integer;
update versions v set tenant_id = d.tenant_id from documents d where d.id = v.document_id;
alter table chunks add column tenant_id integer;
update chunks k set tenant_id = c.tenant_id from collections c where c.id = k.collection_id;
alter table version_chunks add column tenant_id integer;
update version_chunks m set tenant_id = v.tenant_id from versions v where v.id = m.version_id;
alter table vectors add column tenant_id integer;
update vectors e set tenant_id = c.tenant_id from collections c where c.id = e.collection_id;
alter table terms add column tenant_id integer;
update terms t set tenant_id = c.tenant_id from collections c where c.id = t.collection_id;
alter table postings add column tenant_id integer;
update postings p set tenant_id = t.tenant_id from terms t where t.id = p.term_id;

-- The tenant of a row is the server's setting, never a value that a statement carries.
do $$
declare
    name text;
begin
    foreach name in array array['collections', 'documents', 'versions', 'chunks', 'version_chunks', 'vectors', 'vectors_shared',
                                'terms', 'postings'] loop
        execute format('alter table %I alter column tenant_id set default
                        nullif(current_setting(''orchestrator.tenant_id'', true), '''')::integer', name);
        if name <> 'vectors_shared' then
            execute format('alter table %I alter column tenant_id set not null', name);
        end if;
        -- The sub-select is run once for a statement, a bare current_setting() once for a row.
        execute format('create policy tenant_only on %I
                        using (tenant_id = (select nullif(current_setting(''orchestrator.tenant_id'', true), '''')::integer))
                        with check (tenant_id = (select nullif(current_setting(''orchestrator.tenant_id'', true), '''')::integer))',
                       name);
        execute format('alter table %I enable row level security, force row level security', name);
    end loop;
    foreach name in array array['answers', 'ledger_heads', 'adapters'] loop
        execute format('create policy tenant_only on %I
                        using (tenant = (select nullif(current_setting(''orchestrator.tenant'', true), '''')))
                        with check (tenant = (select nullif(current_setting(''orchestrator.tenant'', true), '''')))', name);
        execute format('alter table %I enable row level security, force row level security', name);
    end loop;
end $$;
create policy tenant_only on tenants using (name = (select nullif(current_setting('orchestrator.tenant', true), '')))
    with check (name = (select nullif(current_setting('orchestrator.tenant', true), '')));
create policy kept_by_owner on tenants to current_user using (true) with check (true);
alter table tenants enable row level security, force row level security;

-- The application's role and its rights. Called again by `orchestrator migrate`: a dump that is restored into another
-- cluster comes without roles.
create function grant_to_application() returns boolean language plpgsql as $$
begin
    begin
        if not exists (select from pg_roles where rolname = 'orchestrator_app') then
            create role orchestrator_app nologin;
        end if;
        if not pg_has_role(current_user, 'orchestrator_app', 'SET') then
            execute format('grant orchestrator_app to %I', current_user);
        end if;
    exception
        when duplicate_object or unique_violation then null;  -- another database of this cluster was faster
        when insufficient_privilege then
            raise notice 'the login % cannot have the role orchestrator_app: the policies then hold for itself', current_user;
            if not exists (select from pg_roles where rolname = 'orchestrator_app') then
                return false;
            end if;
    end;
    grant usage on schema public to orchestrator_app;
    grant select, insert, update, delete on all tables in schema public to orchestrator_app;
    revoke insert, update, delete on schema_migrations, tenants from orchestrator_app;
    revoke update, delete on answers from orchestrator_app;
    grant usage, select on all sequences in schema public to orchestrator_app;
    alter default privileges in schema public grant select, insert, update, delete on tables to orchestrator_app;
    alter default privileges in schema public grant usage, select on sequences to orchestrator_app;
    return true;
end $$;
select grant_to_application();
