-- Statements of evaluation/archive.py.

-- name: held-versions
-- Every version of these documents that was ever stored, with its chunks; `holds`: true at the time asked about.
select d.external_id, d.id::text as document_id, v.number, v.title, v.sha256, v.text,
       nullif(v.valid_from, '-infinity') as valid_from, nullif(v.valid_to, 'infinity') as valid_to,
       v.superseded_at is null and d.deleted_at is null as counts,
       v.superseded_at is null and d.deleted_at is null
           and v.valid_from <= coalesce(%(as_of)s::timestamptz, now())
           and coalesce(%(as_of)s::timestamptz, now()) < v.valid_to as holds,
       coalesce(p.chunk_ids, '{}') as chunk_ids, coalesce(p.starts, '{}') as starts, coalesce(p.ends, '{}') as ends,
       coalesce(p.paragraphs, '{}') as paragraphs
from documents d
join versions v on v.document_id = d.id
left join lateral (
    select array_agg(h.chunk_id order by h.ordinal) as chunk_ids, array_agg(h.span_start order by h.ordinal) as starts,
           array_agg(h.span_end order by h.ordinal) as ends, array_agg(h.paragraph order by h.ordinal) as paragraphs
    from version_chunks h
    where h.version_id = v.id
) p on true
where d.collection_id = %(collection_id)s and d.external_id = any(%(external_ids)s) and not v.is_end
order by d.external_id, v.number;
