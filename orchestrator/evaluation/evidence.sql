-- Statements of evidence.py: traffic as the ledger has it, and how often documents change.

-- name: traffic-by-day
select date_trunc('day', at) as day, count(*) as answers
from answers
where tenant = %(tenant)s and kind = 'intent' and at >= %(since)s
group by 1
order by 1;

-- name: traffic-sample
-- The latest answers, whole: a question may hold an escaped NUL, over which PostgreSQL's own JSON functions fail.
select i.payload as intent, o.payload as outcome
from (
    select answer_id, payload from answers
    where tenant = %(tenant)s and kind = 'intent' and at >= %(since)s
    order by seq desc
    limit %(limit)s
) i
join answers o on o.tenant = %(tenant)s and o.answer_id = i.answer_id and o.kind = 'outcome';

-- name: outcomes-of-latest-run
-- What the system showed of itself when the set was last asked: an evaluation is not in the ledger.
select outcome from eval_results
where tenant_id = current_tenant() and run_id = (
    select r.id from eval_runs r
    join eval_sets s on s.id = r.set_id and s.tenant_id = r.tenant_id
    where r.tenant_id = current_tenant() and s.sha256 = %(sha256)s and s.collection = %(collection)s
    order by r.started_at desc, r.id desc
    limit 1
)
order by item_id
limit %(limit)s;

-- name: corpus-size
-- What holds now, and since when the documents are known: the first finite begin of a version, or the first document.
select count(distinct d.id) filter (where v.is_current) as documents,
       coalesce(sum(length(v.text)) filter (where v.is_current), 0) as characters,
       least(min(d.created_at), min(v.valid_from) filter (where v.valid_from > '-infinity')) as since
from collections c
join documents d on d.collection_id = c.id
join lateral (
    select text, valid_from, superseded_at is null and not is_end and valid_from <= %(now)s and %(now)s < valid_to as is_current
    from versions where document_id = d.id
) v on true
where c.tenant_id = current_tenant() and c.name = %(collection)s;

-- name: changes-by-day
-- A version that counts and follows another one is a change on the day it holds from; a version that was corrected,
-- withdrawn or deleted is one on the day that was known.
select c.day, count(distinct c.document_id) as documents
from (
    select document_id, date_trunc('day', valid_from) as day
    from (
        select v.document_id, v.valid_from, lag(v.id) over (partition by v.document_id order by v.valid_from) as before
        from versions v
        join documents d on d.id = v.document_id
        join collections c on c.id = d.collection_id
        where c.tenant_id = current_tenant() and c.name = %(collection)s and v.superseded_at is null
    ) held
    where before is not null and valid_from >= %(since)s and valid_from <= %(now)s
    union all
    select v.document_id, date_trunc('day', v.superseded_at)
    from versions v
    join documents d on d.id = v.document_id
    join collections c on c.id = d.collection_id
    where c.tenant_id = current_tenant() and c.name = %(collection)s and v.superseded_at >= %(since)s
) c
group by 1
order by 1;
