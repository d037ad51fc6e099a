-- Statements of knowledge/jobs.py.

-- name: add-job
-- Nothing comes back when the key is there already.
insert into jobs (kind, payload, key, digest)
values (%(kind)s, %(payload)s, %(key)s, %(digest)s)
on conflict (tenant_id, key) do nothing
returning id;

-- name: job-of-key
select id, digest from jobs where tenant_id = current_tenant() and key = %(key)s;

-- name: list-jobs
select j.id::text as id, j.kind, j.payload, j.key, j.state, j.attempts, j.progress, j.error, j.leased_by, j.lease_until,
       j.run_after, j.created_at, j.asked_at, j.started_at, j.finished_at,
       (select count(*) from dead_letters l where l.job_id = j.id) as letters
from jobs j
where j.tenant_id = current_tenant() and (%(id)s::text is null or j.id::text = %(id)s) and (%(state)s::text is null or j.state = %(state)s)
order by j.created_at desc, j.id
limit %(limit)s;

-- name: list-letters
select source, nullif(line, 0) as line, reason, attempts, created_at from dead_letters where job_id = %(id)s::uuid order by id;

-- name: take-job
-- The job that has waited longest, or whose worker died: then what it had in work is under suspicion.
update jobs j
set state = 'running', attempts = attempts + 1, stalls = stalls + 1, leased_by = %(worker)s,
    lease_until = now() + make_interval(secs => %(lease_s)s), started_at = coalesce(started_at, now()), finished_at = null,
    error = null, in_work = '{}',
    crashes = crashes || coalesce((select jsonb_object_agg(name, coalesce((crashes ->> name)::integer, 0) + 1)
                                   from unnest(in_work) name), '{}')
where id = (select id from jobs
            where tenant_id = current_tenant()
              and (state in ('queued', 'failed') and run_after <= now() or state = 'running' and lease_until < now())
            order by run_after, created_at
            for update skip locked
            limit 1)
returning j.id::text as id, j.kind, j.payload, j.attempts, j.stalls, j.asked_at, j.crashes;

-- name: renew-job
update jobs
set lease_until = now() + make_interval(secs => %(lease_s)s), progress = %(progress)s,
    stalls = case when %(is_further)s then 0 else stalls end
where id = %(id)s::uuid and leased_by = %(worker)s
returning id;

-- name: mark-in-work
update jobs set in_work = %(names)s where id = %(id)s::uuid and leased_by = %(worker)s returning id;

-- name: leave-job
-- Ends a worker's part. `failed` waits before it is taken again.
update jobs
set state = %(state)s, error = %(error)s, run_after = now() + make_interval(secs => %(wait_s)s), progress = %(progress)s,
    leased_by = null, lease_until = null, in_work = '{}', stalls = case when %(is_further)s then 0 else stalls end,
    finished_at = case when %(state)s in ('done', 'dead') then now() end
where id = %(id)s::uuid and leased_by = %(worker)s
returning id;

-- name: add-letters
insert into dead_letters (job_id, source, line, reason, attempts)
select %(id)s::uuid, g.source, g.line, g.reason, g.attempts
from unnest(%(sources)s::text[], %(lines)s::integer[], %(reasons)s::text[], %(attempts)s::integer[]) g (source, line, reason, attempts)
on conflict (job_id, source, line) do nothing
returning id;

-- name: forget-letters
delete from dead_letters where job_id = %(id)s::uuid;

-- name: retry-job
update jobs
set state = 'queued', run_after = now(), asked_at = clock_timestamp(), stalls = 0, error = null, crashes = '{}', progress = '{}',
    finished_at = null
where tenant_id = current_tenant() and id::text = %(id)s and state in ('done', 'failed', 'dead', 'cancelled')
returning id;

-- name: cancel-job
update jobs
set state = 'cancelled', leased_by = null, lease_until = null, in_work = '{}', finished_at = now()
where tenant_id = current_tenant() and id::text = %(id)s and state in ('queued', 'running', 'failed')
returning id;

-- name: count-open-jobs
select count(*) as open, count(*) filter (where state = 'running') as running from jobs
where tenant_id = current_tenant() and state in ('queued', 'running', 'failed');
