-- Statements about tenants and their keys.

-- name: take-role
-- From here on the connection owns nothing and every policy holds for it, whoever the login is.
select set_config('role', r.rolname, false)
from pg_roles r
where r.rolname = 'orchestrator_app' and pg_has_role(session_user, r.oid, 'SET');

-- name: leave-role
set local role none;

-- name: use-tenant
select use_tenant(%(tenant)s);

-- name: use-tenant-as-owner
select use_tenant(%(tenant)s, true);

-- name: grant-to-application
select grant_to_application() as granted;

-- name: who-works
-- What keeps tenants apart on this connection: its role, whether policies hold for it, and what it could do beyond them.
select session_user as login, current_user as role, r.rolsuper or r.rolbypassrls as passes_policies,
       row_security_active('collections') as has_policies,
       exists (select from pg_class c where c.relowner = r.oid and c.relnamespace = 'public'::regnamespace) as owns_tables,
       exists (select from pg_roles where rolname = 'orchestrator_app') as has_application_role
from pg_roles r
where r.rolname = current_user;

-- name: add-tenant
insert into tenants (name) values (%(tenant)s) on conflict (name) do nothing returning id;

-- name: find-tenant
select id, name, created_at, removed_at from tenants where name = %(tenant)s;

-- name: list-tenants
select name, created_at, removed_at from tenants where %(removed)s or removed_at is null order by name;

-- name: tenant-sizes
select (select count(*) from collections where tenant_id = current_tenant()) as collections,
       (select count(*) from documents where tenant_id = current_tenant() and deleted_at is null) as documents,
       (select count(*) from api_keys where tenant = %(tenant)s and revoked_at is null) as keys;

-- name: remove-tenant
-- Its ledger stays, and with it the name.
with removed as (
    update tenants set removed_at = now() where name = %(tenant)s and removed_at is null returning id
), keyless as (
    delete from api_keys where tenant = %(tenant)s
), jobless as (
    delete from jobs j using removed r where j.tenant_id = r.id
), setless as (
    delete from eval_sets s using removed r where s.tenant_id = r.id
)
delete from collections c using removed r where c.tenant_id = r.id returning c.id;

-- name: insert-key
insert into api_keys (id, tenant, note, salt, hash)
values (%(id)s, %(tenant)s, %(note)s, %(salt)s, %(hash)s);

-- name: find-key
select tenant, salt, hash from find_key(%(id)s);

-- name: list-keys
select id, tenant, note, created_at, revoked_at from api_keys where tenant = %(tenant)s order by created_at, id;

-- name: revoke-key
update api_keys set revoked_at = coalesce(revoked_at, now()) where tenant = %(tenant)s and id = %(id)s returning id;

-- name: are-keys-issued
-- Read from the sequence: it counts the keys of all tenants, also those that are gone, and shows none of them.
select last_value > 1 or is_called as issued from api_keys_number_seq;
