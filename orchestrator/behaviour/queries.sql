-- Statements of registry.py.

-- name: insert-adapter
insert into adapters (tenant, name, digest, path, base, rank, prompt, prompt_digest, contract, contract_digest, manifest)
values (%(tenant)s, %(name)s, %(digest)s, %(path)s, %(base)s, %(rank)s, %(prompt)s, %(prompt_digest)s, %(contract)s,
        %(contract_digest)s, %(manifest)s)
on conflict (tenant, name, digest) do update set path = excluded.path, manifest = excluded.manifest;

-- name: list-adapters
select name, digest, path, base, rank, prompt, prompt_digest, contract, contract_digest, state, manifest
from adapters
where tenant = %(tenant)s
order by name, id desc;

-- name: lock-adapters
-- Changes of state of one name follow one another; two promotions at once would else meet in the unique index.
select pg_advisory_xact_lock(hashtextextended('orchestrator adapters ' || %(tenant)s || ' ' || %(name)s, 0));

-- name: previous-adapter
-- The one that a promotion replaced last. One that was only a canary never was in service.
select digest
from adapters
where tenant = %(tenant)s and name = %(name)s and state = 'candidate' and activated_at is not null
order by changed_at desc
limit 1;

-- name: demote-adapter
update adapters set state = 'candidate', changed_at = clock_timestamp()
where tenant = %(tenant)s and name = %(name)s and state = 'active' and digest <> %(digest)s;

-- name: set-adapter-state
update adapters set state = %(state)s, changed_at = clock_timestamp()
where tenant = %(tenant)s and name = %(name)s and digest = %(digest)s and state <> %(state)s;
