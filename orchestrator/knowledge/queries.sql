-- Statements of knowledge/store.py and knowledge/search.py.

-- name: make-collection
insert into collections (name, embedding_space, dimensions, language)
values (%(name)s, %(space)s, %(dimensions)s, %(language)s::regconfig)
on conflict (tenant_id, name) do nothing;

-- name: find-collection
select id, name, embedding_space, dimensions, language::text as language, dense_weight, chunk_count
from collections
where tenant_id = current_tenant() and name = %(name)s;

-- name: list-collections
select name from collections where tenant_id = current_tenant() order by name;

-- name: collection-stats
select c.name, c.embedding_space, c.dimensions, c.language::text as language, c.languages::text[] as languages, c.dense_weight,
       c.chunk_count,
       (select count(*) from documents d where d.collection_id = c.id and d.deleted_at is null) as document_count,
       (select count(*) from versions v join documents d on d.id = v.document_id
        where d.collection_id = c.id and v.superseded_at is null) as version_count,
       (select count(*) from terms t where t.collection_id = c.id and t.document_count > 0) as distinct_terms
from collections c
where c.tenant_id = current_tenant() and c.name = %(name)s;

-- name: lock-collection
-- Writers of one collection go one after the other: they all change its document frequencies. Embedding, the slow part,
-- is done before. `no key` lets rows that refer to the collection be inserted meanwhile.
select id from collections where id = %(collection_id)s for no key update;

-- name: known-documents
-- What the collection has of these documents, with the chunks that have a vector in its space.
select d.external_id, d.id as document_id, d.title, d.source, d.metadata,
       coalesce((select array_agg(c.sha256) from chunks c
                 where c.document_id = d.id and exists (select from vectors e where e.collection_id = d.collection_id
                                                        and e.space = %(space)s and e.chunk_id = c.id)), '{}') as held
from documents d
where d.collection_id = %(collection_id)s and d.external_id = any(%(external_ids)s);

-- name: held-chunks
select c.sha256 from chunks c
where c.document_id = %(document_id)s
  and exists (select from vectors e where e.collection_id = %(collection_id)s and e.space = %(space)s and e.chunk_id = c.id);

-- name: versions-that-count
select v.document_id, v.id, v.number, v.sha256, v.title, v.source, nullif(v.valid_from, '-infinity') as valid_from,
       nullif(v.valid_to, 'infinity') as valid_to
from versions v
where v.document_id = any(%(document_ids)s) and v.superseded_at is null
order by v.document_id, v.valid_from;

-- name: database-now
select clock_timestamp() as now;

-- name: find-document
select id, title, source, metadata, deleted_at
from documents
where collection_id = %(collection_id)s and external_id = %(external_id)s;

-- name: insert-document
insert into documents (collection_id, external_id, title, source, metadata)
values (%(collection_id)s, %(external_id)s, %(title)s, %(source)s, %(metadata)s)
returning id;

-- name: update-document
update documents
set title = %(title)s, source = %(source)s, metadata = %(metadata)s, deleted_at = null
where id = %(document_id)s
  and (title, source, metadata) is distinct from (%(title)s, %(source)s, %(metadata)s)
   or id = %(document_id)s and deleted_at is not null;

-- name: supersede-version
update versions set superseded_at = now() where id = %(version_id)s;

-- name: refresh-validity
-- A version that counts is valid until the next one begins.
update versions v
set valid_to = n.valid_to
from (select id, coalesce(lead(valid_from) over (order by valid_from), 'infinity') as valid_to
      from versions where document_id = %(document_id)s and superseded_at is null) n
where v.id = n.id and v.valid_to <> n.valid_to;

-- name: insert-version
insert into versions (document_id, number, sha256, title, source, media_type, text, notes, valid_from, language, is_end)
select %(document_id)s, coalesce(max(number), 0) + 1, %(sha256)s, %(title)s, %(source)s, %(media_type)s, %(text)s,
       %(notes)s, coalesce(%(valid_from)s::timestamptz, '-infinity'), %(language)s::regconfig, %(is_end)s
from versions
where document_id = %(document_id)s
returning id, number;

-- name: add-chunks
-- Ids of the chunks with these hashes; those that are not there are added.
with given as (
    select distinct on (sha256) sha256, context, text, place
    from unnest(%(sha256s)s::text[], %(contexts)s::text[], %(texts)s::text[]) with ordinality g (sha256, context, text, place)
    order by sha256, place
), added as (
    insert into chunks (collection_id, document_id, sha256, context, text, language, term_count)
    select %(collection_id)s, %(document_id)s, sha256, context, text, %(language)s::regconfig, 0 from given order by place
    on conflict (document_id, sha256) do nothing
    returning id, sha256
)
select id, sha256, false as is_posted from added
union all
select c.id, c.sha256, c.term_count > 0 from chunks c join given g using (sha256) where c.document_id = %(document_id)s;

-- name: make-incoming
-- COPY is refused for tables with row level security: it goes into tables of the connection's own first.
create temporary table if not exists incoming_vectors (chunk_id bigint, embedding halfvec, tokens bytea) on commit delete rows;
create temporary table if not exists incoming_spans (
    ordinal integer, chunk_id bigint, span_start integer, span_end integer, paragraph integer, heading_path text[], page integer
) on commit delete rows;

-- name: copy-vectors
copy incoming_vectors (chunk_id, embedding, tokens) from stdin (format binary);

-- name: insert-vectors
with moved as (delete from incoming_vectors returning *)
insert into vectors (collection_id, chunk_id, space, embedding, tokens)
select %(collection_id)s, chunk_id, %(space)s, embedding, tokens from moved;

-- name: copy-spans
copy incoming_spans (ordinal, chunk_id, span_start, span_end, paragraph, heading_path, page) from stdin;

-- name: insert-spans
with moved as (delete from incoming_spans returning *)
insert into version_chunks (version_id, ordinal, chunk_id, span_start, span_end, paragraph, heading_path, page)
select %(version_id)s, ordinal, chunk_id, span_start, span_end, paragraph, heading_path, page from moved;

-- name: use-language
update collections set languages = languages || %(language)s::regconfig
where id = %(collection_id)s and not languages @> array[%(language)s::regconfig];

-- name: add-postings
-- Lexemes of the texts, and the exact terms of each chunk beside them, which do not count for its length.
with lexemes as materialized (
    select g.chunk_id, u.lexeme, least(cardinality(u.positions), 255) as frequency, true as is_word
    from unnest(%(chunk_ids)s::bigint[], %(texts)s::text[]) g (chunk_id, indexed),
         unnest(to_tsvector(%(language)s::regconfig, g.indexed)) u
    union all
    select chunk_id, term, frequency, false
    from unnest(%(exact_ids)s::bigint[], %(exact_terms)s::text[], %(exact_counts)s::integer[]) x (chunk_id, term, frequency)
), lengths as materialized (
    select g.chunk_id, coalesce(sum(l.frequency) filter (where l.is_word), 0) as term_count
    from unnest(%(chunk_ids)s::bigint[]) g (chunk_id) left join lexemes l using (chunk_id)
    group by g.chunk_id
), named as (
    insert into terms (collection_id, term, max_frequency)
    select %(collection_id)s, lexeme, max(frequency) from lexemes group by lexeme order by lexeme
    on conflict (collection_id, term) do update set max_frequency = greatest(terms.max_frequency, excluded.max_frequency)
    returning id, term
), posted as (
    insert into postings (term_id, chunk_id, frequency, length)
    select t.id, l.chunk_id, l.frequency, n.term_count
    from lexemes l join named t on t.term = l.lexeme join lengths n using (chunk_id)
)
update chunks c set term_count = n.term_count from lengths n where c.id = n.chunk_id;

-- name: count-chunks
-- Document frequencies and lengths over the collection: +1 for chunks that are found from now on, -1 for those that are not.
with counted as (
    update terms t set document_count = t.document_count + %(sign)s::integer * g.chunks
    from (select term_id, count(*) as chunks from postings where chunk_id = any(%(chunk_ids)s) group by term_id) g
    where t.id = g.term_id
)
update collections
set chunk_count = chunk_count + %(sign)s::integer * n.chunks, term_count = collections.term_count + %(sign)s::integer * n.terms
from (select count(*) as chunks, coalesce(sum(term_count), 0) as terms from chunks where id = any(%(chunk_ids)s)) n
where id = %(collection_id)s;

-- name: refresh-live
-- When each chunk of the document is to be found: while a version that counts and holds it is valid.
update chunks c
set live = r.live
from (
    select k.id, k.live as before,
           coalesce(range_agg(tstzrange(v.valid_from, v.valid_to)) filter (where v.id is not null), '{}') as live
    from chunks k
    left join version_chunks m on m.chunk_id = k.id
    left join versions v on v.id = m.version_id and v.superseded_at is null
    where k.document_id = %(document_id)s
    group by k.id
) r
where c.id = r.id and c.live is distinct from r.live
returning c.id, case when isempty(r.before) = isempty(c.live) then 0 when isempty(c.live) then -1 else 1 end as sign;

-- name: remove-unused-terms
delete from terms t
where t.collection_id = %(collection_id)s and t.document_count = 0
  and not exists (select from postings p where p.term_id = t.id);

-- name: refresh-statistics
analyze documents, versions, chunks, version_chunks, vectors, terms, postings;

-- name: supersede-document
with marked as (
    update documents set deleted_at = now()
    where collection_id = %(collection_id)s and external_id = %(external_id)s and deleted_at is null
    returning id
), superseded as (
    update versions v set superseded_at = now() from marked m where v.document_id = m.id and v.superseded_at is null
)
select id from marked;

-- name: erase-document
delete from documents where collection_id = %(collection_id)s and external_id = %(external_id)s;

-- name: list-documents
select d.id::text as document_id, d.external_id, d.title, d.source, d.metadata, d.deleted_at,
       v.number as version, nullif(v.valid_from, '-infinity') as valid_from, nullif(v.valid_to, 'infinity') as valid_to,
       (select count(*) from versions a where a.document_id = d.id and a.superseded_at is null) as versions
from documents d
left join versions v on v.document_id = d.id and v.superseded_at is null and v.valid_from <= now() and now() < v.valid_to
where d.collection_id = %(collection_id)s
  and (%(deleted)s or d.deleted_at is null)
  and (%(after)s::text is null or d.external_id > %(after)s)
order by d.external_id
limit %(limit)s;

-- name: document-history
select v.number, v.sha256, v.title, v.source, v.media_type, v.notes, nullif(v.valid_from, '-infinity') as valid_from,
       nullif(v.valid_to, 'infinity') as valid_to, v.recorded_at, v.superseded_at, char_length(v.text) as characters,
       (select count(*) from version_chunks m where m.version_id = v.id) as chunks
from versions v
join documents d on d.id = v.document_id
where d.collection_id = %(collection_id)s and d.external_id = %(external_id)s
order by v.number;

-- name: version-text
select d.id::text as document_id, d.external_id, v.number, v.title, v.media_type, v.source, v.text,
       nullif(v.valid_from, '-infinity') as valid_from, nullif(v.valid_to, 'infinity') as valid_to, v.superseded_at
from versions v
join documents d on d.id = v.document_id
where d.collection_id = %(collection_id)s and d.external_id = %(external_id)s
  and case when %(number)s::integer is not null then v.number = %(number)s
           else v.superseded_at is null and v.valid_from <= coalesce(%(as_of)s::timestamptz, now())
                and coalesce(%(as_of)s::timestamptz, now()) < v.valid_to end;

-- name: version-by-id
select d.id::text as document_id, d.external_id, v.number, v.title, v.media_type, v.source, v.text,
       nullif(v.valid_from, '-infinity') as valid_from, nullif(v.valid_to, 'infinity') as valid_to, v.superseded_at
from versions v
join documents d on d.id = v.document_id
join collections c on c.id = d.collection_id
where c.tenant_id = current_tenant() and d.id::text = %(document_id)s and v.number = %(number)s;

-- name: search
-- One round trip; the function is in migrations/0006_pre_search.sql.
select * from search_passages(
    %(tenant)s, %(collection)s, %(space)s, %(text)s, %(exact_terms)s, %(phrases)s, %(vector)s::halfvec, %(k)s, %(depth)s,
    %(as_of)s, %(known_at)s, %(filter)s::jsonpath, %(mode)s, %(dense_weight)s, %(with_tokens)s);
