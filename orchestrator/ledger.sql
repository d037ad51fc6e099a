-- name: ledger-lock
select pg_advisory_xact_lock(hashtextextended('orchestrator-ledger:' || %(tenant)s, 0));

-- name: ledger-head
select seq, hash from ledger_heads where tenant = %(tenant)s;

-- name: ledger-insert
insert into answers (tenant, seq, answer_id, kind, at, payload, prev_hash, hash)
values (%(tenant)s, %(seq)s, %(answer_id)s, %(kind)s, %(at)s, %(payload)s, %(prev_hash)s, %(hash)s);

-- name: ledger-move-head
insert into ledger_heads (tenant, seq, hash) values (%(tenant)s, %(seq)s, %(hash)s)
on conflict (tenant) do update set seq = excluded.seq, hash = excluded.hash;

-- name: keep-prompts
insert into prompts (digest, name, body) values (%(digest)s, %(name)s, %(body)s) on conflict do nothing;

-- name: keep-contracts
insert into contracts (digest, name, body) values (%(digest)s, %(name)s, %(body)s) on conflict do nothing;

-- name: ledger-show
select seq, kind, at, payload, hash from answers
where tenant = %(tenant)s and answer_id = %(answer_id)s
order by seq;

-- name: ledger-list
select i.answer_id, i.at, i.payload as intent, o.payload as outcome
from answers i
left join answers o on o.tenant = i.tenant and o.answer_id = i.answer_id and o.kind = 'outcome'
where i.tenant = %(tenant)s and i.kind = 'intent'
order by i.seq desc
limit %(limit)s;

-- name: ledger-scan
select seq, answer_id, kind, at, payload, prev_hash, hash from answers
where tenant = %(tenant)s and seq > %(after)s
order by seq
limit %(limit)s;
