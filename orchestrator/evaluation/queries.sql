-- Statements of evaluation/runs.py.

-- name: corpus-of-collection
-- Every version that counts; `holds`: it is true now, so that its text is found. Metadata count, as filters read them.
select d.external_id, v.number, v.sha256, v.title, v.valid_from::text as valid_from, v.valid_to::text as valid_to, v.is_end,
       md5(d.metadata::text) as metadata,
       v.valid_from <= now() and now() < v.valid_to and not v.is_end as holds
from documents d
join versions v on v.document_id = d.id and v.superseded_at is null
where d.tenant_id = current_tenant() and d.collection_id = %(collection_id)s
order by d.external_id, v.number;

-- name: freeze-set
insert into eval_sets (name, sha256, collection, corpus, items, faults, snapshot)
values (%(name)s, %(sha256)s, %(collection)s, %(corpus)s, %(items)s, %(faults)s, %(snapshot)s)
on conflict (tenant_id, sha256, collection, corpus) do nothing;

-- name: find-set
select id, name, sha256, collection, corpus, frozen_at from eval_sets
where tenant_id = current_tenant() and sha256 = %(sha256)s and collection = %(collection)s and corpus = %(corpus)s;

-- name: read-set
select id, name, sha256, collection, corpus, items, faults, snapshot, frozen_at from eval_sets
where tenant_id = current_tenant() and id = %(id)s;

-- name: insert-run
insert into eval_runs (id, set_id, name, stamp, system) values (%(id)s, %(set_id)s, %(name)s, %(stamp)s, %(system)s);

-- name: run-of-stamp
select id from eval_runs
where tenant_id = current_tenant() and set_id = %(set_id)s and stamp = %(stamp)s and name = %(name)s
order by started_at desc limit 1;

-- name: find-runs
-- By id, or the latest of that name.
select r.id, r.name, r.set_id, s.name as set_name, s.sha256, s.collection, s.corpus, r.stamp, r.system, r.started_at, r.finished_at,
       (select count(*) from eval_results e where e.tenant_id = r.tenant_id and e.run_id = r.id) as asked
from eval_runs r
join eval_sets s on s.id = r.set_id
where r.tenant_id = current_tenant() and (%(name)s::text is null or r.id = %(name)s or r.name = %(name)s)
order by r.started_at desc, r.id desc
limit %(limit)s;

-- name: finish-run
update eval_runs set finished_at = now() where tenant_id = current_tenant() and id = %(id)s;

-- name: keep-result
insert into eval_results (run_id, item_id, key, outcome, score, reusable)
values (%(run_id)s, %(item_id)s, %(key)s, %(outcome)s, %(score)s, %(reusable)s)
on conflict (tenant_id, run_id, item_id) do update
set key = excluded.key, outcome = excluded.outcome, score = excluded.score, reusable = excluded.reusable, at = now();

-- name: copy-known-results
-- What any run found under the same keys, for the items that this run has not asked yet.
insert into eval_results (run_id, item_id, key, outcome, score, reusable)
select %(run_id)s, w.item_id, w.key, k.outcome, k.score, true
from unnest(%(item_ids)s::text[], %(keys)s::text[]) w (item_id, key)
cross join lateral (
    select e.outcome, e.score from eval_results e
    where e.tenant_id = current_tenant() and e.key = w.key and e.reusable and e.item_id = w.item_id
    order by e.at desc limit 1
) k
on conflict (tenant_id, run_id, item_id) do update
set key = excluded.key, outcome = excluded.outcome, score = excluded.score, reusable = true
where not eval_results.reusable;

-- name: results-of-run
select item_id, key, outcome, score, reusable from eval_results
where tenant_id = current_tenant() and run_id = %(run_id)s
order by item_id;

-- name: remove-run
delete from eval_runs where tenant_id = current_tenant() and id = %(id)s returning id;
