-- API keys of tenants, as salted hashes only.

create table api_keys (
    id         text primary key check (id ~ '^[0-9a-f]{12}$'),
    number     bigint generated always as identity,            -- tells a server that keys were issued, see are-keys-issued
    tenant     text not null references tenants (name),
    note       text not null default '',
    salt       bytea not null check (length(salt) >= 16),
    hash       bytea not null check (length(hash) = 32),       -- sha256 of salt and a secret of 256 random bits
    created_at timestamptz not null default now(),
    revoked_at timestamptz
);
create index api_keys_tenant on api_keys (tenant);

create policy tenant_only on api_keys using (tenant = (select nullif(current_setting('orchestrator.tenant', true), '')))
    with check (tenant = (select nullif(current_setting('orchestrator.tenant', true), '')));
-- Who comes with a key has no tenant yet: the one row that he names can be read, and no other.
create policy asked_for on api_keys for select using (id = (select nullif(current_setting('orchestrator.key', true), '')));
alter table api_keys enable row level security, force row level security;

create function find_key(wanted text) returns table (tenant text, salt bytea, hash bytea) language plpgsql stable as $$
begin
    perform set_config('orchestrator.key', wanted, true);
    return query select k.tenant, k.salt, k.hash from api_keys k where k.id = wanted and k.revoked_at is null;
end $$;
select grant_to_application();
