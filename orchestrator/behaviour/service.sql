-- Statements of registry.py, canary.py and audit.py: adapters in service.

-- name: adapters-in-service
-- Adapters of a plain or a served name, without their manifests, and the running canary of the plain name.
select a.name, a.digest, a.path, a.base, a.rank, a.prompt, a.prompt_digest, a.contract, a.contract_digest, a.state,
       c.id as canary_id, c.share, c.against
from adapters a
left join canaries c on c.tenant = a.tenant and c.name = a.name and c.digest = a.digest and c.ended is null
where a.tenant = %(tenant)s
  and (a.name = %(name)s and a.state in ('active', 'canary')
       or a.name = %(plain)s and left(a.digest, 12) = %(short)s);

-- name: insert-canary
insert into canaries (tenant, name, digest, against, share, rules)
values (%(tenant)s, %(name)s, %(digest)s, %(against)s, %(share)s, %(rules)s)
returning id;

-- name: end-canary
update canaries set ended = %(ended)s, ended_at = clock_timestamp(), reason = %(reason)s
where tenant = %(tenant)s and name = %(name)s and ended is null
returning id, digest;

-- name: running-canary
select id, digest from canaries where tenant = %(tenant)s and name = %(name)s and ended is null;

-- name: activate-adapter
update adapters set state = 'active', changed_at = clock_timestamp(), activated_at = clock_timestamp()
where tenant = %(tenant)s and name = %(name)s and digest = %(digest)s and state <> 'active';

-- name: list-canaries
select id, name, digest, against, share, rules, started_at, ended_at, ended, reason
from canaries
where tenant = %(tenant)s and (%(name)s::text is null or name = %(name)s)
order by id desc
limit 20;

-- name: find-canary
select id, name, digest, against, share, rules, started_at, ended_at, ended, reason
from canaries
where tenant = %(tenant)s and id = %(id)s;

-- name: last-canary-of
select id, ended, ended_at from canaries
where tenant = %(tenant)s and name = %(name)s and digest = %(digest)s
order by id desc
limit 1;

-- name: note-unit
insert into canary_units (tenant, canary_id, unit, arm, answers, violations, refusals, uncited, slow, timed, model_ms)
values (%(tenant)s, %(canary_id)s, %(unit)s, %(arm)s, 1, %(violations)s, %(refusals)s, %(uncited)s, %(slow)s, %(timed)s,
        %(model_ms)s)
on conflict (canary_id, unit) do update
set answers = canary_units.answers + 1,
    violations = canary_units.violations + excluded.violations,
    refusals = canary_units.refusals + excluded.refusals,
    uncited = canary_units.uncited + excluded.uncited,
    slow = canary_units.slow + excluded.slow,
    timed = canary_units.timed + excluded.timed,
    model_ms = canary_units.model_ms + excluded.model_ms;

-- name: canary-arms
select arm, count(*) as units, sum(answers)::bigint as answers,
       count(*) filter (where violations > 0) as violations,
       count(*) filter (where refusals > 0) as refusals,
       count(*) filter (where uncited > 0) as uncited,
       count(*) filter (where slow > 0) as slow,
       sum(timed)::bigint as timed, sum(model_ms) as model_ms
from canary_units
where tenant = %(tenant)s and canary_id = %(canary_id)s
group by arm;

-- name: insert-behaviour-audit
insert into behaviour_audit (tenant, actor, action, name, digest, config, details)
values (%(tenant)s, %(actor)s, %(action)s, %(name)s, %(digest)s, %(config)s, %(details)s)
returning id;

-- name: list-behaviour-audit
select id, at, actor, action, name, digest, config, details
from behaviour_audit
where tenant = %(tenant)s and (%(name)s::text is null or name = %(name)s)
order by id desc
limit %(limit)s;

-- name: last-behaviour-audit
select id, at, actor, details
from behaviour_audit
where tenant = %(tenant)s and name = %(name)s and digest = %(digest)s and action = %(action)s
order by id desc
limit 1;
