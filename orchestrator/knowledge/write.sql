-- Statements of knowledge/write.py: each takes the versions of many documents at once.

-- name: documents-to-write
select id, external_id from documents where collection_id = %(collection_id)s and external_id = any(%(external_ids)s);

-- name: chunks-with-vectors
select c.document_id, c.sha256 from chunks c
where c.document_id = any(%(document_ids)s)
  and exists (select from vectors e where e.collection_id = %(collection_id)s and e.space = %(space)s and e.chunk_id = c.id);

-- name: clock-of-documents
-- Read under the collection's lock: now() is the start of the transaction, which may have waited for it. Later than all that
-- the documents' versions carry, even when the clock was set back.
select greatest(clock_timestamp(), (select max(greatest(recorded_at, superseded_at)) + interval '1 microsecond'
                                    from versions where document_id = any(%(document_ids)s))) as now;

-- name: changes-since
-- `is_gone`: the document was deleted, or ends from now on.
select v.document_id, v.sha256, v.title, nullif(v.valid_from, '-infinity') as valid_from,
       coalesce(d.deleted_at > %(began)s, false) or (v.is_end and v.superseded_at is null and v.valid_to = 'infinity') as is_gone
from versions v join documents d on d.id = v.document_id
where v.document_id = any(%(document_ids)s)
  and (v.recorded_at > %(began)s or v.superseded_at > %(began)s or d.deleted_at > %(began)s);

-- name: insert-documents
insert into documents (collection_id, external_id, title, source, metadata)
select %(collection_id)s, g.external_id, g.title, g.source, g.metadata
from unnest(%(external_ids)s::text[], %(titles)s::text[], %(sources)s::text[], %(metadata)s::jsonb[])
     g (external_id, title, source, metadata)
returning id, external_id;

-- name: update-documents
update documents d
set title = g.title, source = g.source, metadata = g.metadata, deleted_at = null
from unnest(%(document_ids)s::uuid[], %(titles)s::text[], %(sources)s::text[], %(metadata)s::jsonb[])
     g (id, title, source, metadata)
where d.id = g.id
  and ((d.title, d.source, d.metadata) is distinct from (g.title, g.source, g.metadata) or d.deleted_at is not null);

-- name: supersede-versions
update versions set superseded_at = %(now)s where id = any(%(version_ids)s);

-- name: insert-versions
insert into versions (document_id, number, sha256, title, source, media_type, text, notes, valid_from, recorded_at, language, is_end)
select g.document_id, coalesce((select max(v.number) from versions v where v.document_id = g.document_id), 0) + 1, g.sha256,
       g.title, g.source, g.media_type, g.text, array(select jsonb_array_elements_text(g.notes)),
       coalesce(g.valid_from, '-infinity'), %(now)s, g.language::regconfig, g.is_end
from unnest(%(document_ids)s::uuid[], %(sha256s)s::text[], %(titles)s::text[], %(sources)s::text[], %(media_types)s::text[],
            %(texts)s::text[], %(notes)s::jsonb[], %(valid_froms)s::timestamptz[], %(languages)s::text[], %(ends)s::boolean[])
     g (document_id, sha256, title, source, media_type, text, notes, valid_from, language, is_end)
returning id, document_id, number;

-- name: refresh-validity
-- A version that counts is valid until the next one begins.
update versions v
set valid_to = n.valid_to
from (select id, coalesce(lead(valid_from) over (partition by document_id order by valid_from), 'infinity') as valid_to
      from versions where document_id = any(%(document_ids)s) and superseded_at is null) n
where v.id = n.id and v.valid_to <> n.valid_to;

-- name: add-chunks
-- Ids of the chunks with these hashes; those that are not there are added.
with given as (
    select distinct on (document_id, sha256) document_id, sha256, context, text, language, place
    from unnest(%(document_ids)s::uuid[], %(sha256s)s::text[], %(contexts)s::text[], %(texts)s::text[], %(languages)s::text[])
         with ordinality g (document_id, sha256, context, text, language, place)
    order by document_id, sha256, place
), added as (
    insert into chunks (collection_id, document_id, sha256, context, text, language, term_count)
    select %(collection_id)s, document_id, sha256, context, text, language::regconfig, 0 from given order by place
    on conflict (document_id, sha256) do nothing
    returning id, document_id, sha256
)
select id, document_id, sha256, false as is_posted from added
union all
select c.id, c.document_id, c.sha256, c.term_count > 0 from chunks c join given g using (document_id, sha256);

-- name: make-incoming
-- COPY is refused for tables with row level security: it goes into tables of the connection's own first.
create temporary table if not exists incoming_vectors (chunk_id bigint, embedding halfvec, tokens bytea) on commit delete rows;
create temporary table if not exists incoming_spans (
    version_id bigint, ordinal integer, chunk_id bigint, span_start integer, span_end integer, paragraph integer,
    heading_path text[], page integer
) on commit delete rows;

-- name: copy-vectors
copy incoming_vectors (chunk_id, embedding, tokens) from stdin (format binary);

-- name: insert-vectors
insert into vectors (collection_id, chunk_id, space, embedding, tokens)
select %(collection_id)s, chunk_id, %(space)s, embedding, tokens from incoming_vectors;

-- name: copy-spans
copy incoming_spans (version_id, ordinal, chunk_id, span_start, span_end, paragraph, heading_path, page) from stdin;

-- name: insert-spans
insert into version_chunks (version_id, ordinal, chunk_id, span_start, span_end, paragraph, heading_path, page)
select version_id, ordinal, chunk_id, span_start, span_end, paragraph, heading_path, page from incoming_spans;

-- name: forget-incoming
truncate incoming_vectors, incoming_spans;

-- name: refresh-live
-- When each chunk of the documents is to be found: while a version that counts and holds it is valid.
update chunks c
set live = r.live
from (
    select k.id, k.live as before,
           coalesce(range_agg(tstzrange(v.valid_from, v.valid_to)) filter (where v.id is not null), '{}') as live
    from chunks k
    left join version_chunks m on m.chunk_id = k.id
    left join versions v on v.id = m.version_id and v.superseded_at is null
    where k.document_id = any(%(document_ids)s)
    group by k.id
) r
where c.id = r.id and c.live is distinct from r.live
returning c.id, case when isempty(r.before) = isempty(c.live) then 0 when isempty(c.live) then -1 else 1 end as sign;

-- name: main-language
select (select l::text from unnest(languages) with ordinality u (l, place) where l <> 'simple'::regconfig order by place limit 1)
       as language
from collections where id = %(collection_id)s;
