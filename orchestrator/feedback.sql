-- Statements of feedback.py.

-- name: insert-feedback
insert into feedback (tenant, answer_id, verdict, fix, note)
values (%(tenant)s, %(answer_id)s, %(verdict)s, %(fix)s, %(note)s)
returning id, at;

-- name: list-feedback
select id, answer_id, verdict, fix, note, at from feedback
where tenant = %(tenant)s and answer_id = %(answer_id)s
order by id;

-- name: latest-feedback
-- The last word on each answer, oldest answer first.
select f.id, f.answer_id, f.verdict, f.fix, f.note, f.at
from (
    select distinct on (answer_id) id, answer_id, verdict, fix, note, at from feedback
    where tenant = %(tenant)s
    order by answer_id, id desc
) f
where f.verdict = any (%(verdicts)s)
order by f.id;

-- name: contract-body
select name, body from contracts where digest = %(digest)s;

-- name: passages-of-answer
-- Passages of an answer that are still stored, with the text, the title and the headings they were shown with.
select a.place, d.id::text as document_id, d.external_id, v.number as version, v.title,
       substr(v.text, a.first + 1, a.last - a.first) as text, m.chunk_id, m.heading_path
from unnest(%(document_ids)s::uuid[], %(numbers)s::integer[], %(chunk_ids)s::bigint[], %(starts)s::integer[],
            %(ends)s::integer[]) with ordinality a (document_id, number, chunk_id, first, last, place)
join documents d on d.tenant_id = current_tenant() and d.id = a.document_id
join versions v on v.document_id = d.id and v.number = a.number
left join version_chunks m on m.version_id = v.id and m.chunk_id = a.chunk_id and m.span_start <= a.first and m.span_end >= a.last
order by a.place;
