-- Statements of knowledge/store.py and knowledge/search.py.

-- name: make-collection
insert into collections (tenant, name, embedding_space, dimensions, language)
values (%(tenant)s, %(name)s, %(space)s, %(dimensions)s, %(language)s::regconfig)
on conflict (tenant, name) do nothing;

-- name: find-collection
select id, name, embedding_space, dimensions, language::text as language, dense_weight, chunk_count
from collections
where tenant = %(tenant)s and name = %(name)s;

-- name: list-collections
select name from collections where tenant = %(tenant)s order by name;

-- name: collection-stats
select c.name, c.embedding_space, c.dimensions, c.language::text as language, c.dense_weight, c.chunk_count,
       (select count(*) from documents d where d.collection_id = c.id and d.deleted_at is null) as document_count,
       (select count(*) from versions v join documents d on d.id = v.document_id
        where d.collection_id = c.id and v.superseded_at is null) as version_count,
       (select count(*) from terms t where t.collection_id = c.id and t.document_count > 0) as distinct_terms
from collections c
where c.tenant = %(tenant)s and c.name = %(name)s;

-- name: lock-collection
-- Writers of one collection go one after the other: they all change its document frequencies. Embedding, the slow part,
-- is done before. `no key` lets rows that refer to the collection be inserted meanwhile.
select id from collections where id = %(collection_id)s for no key update;

-- name: known-documents
-- What the collection has of these documents, with the chunks that have a vector (those that are to be found at some time).
select d.external_id, d.id as document_id, d.title, d.source, d.metadata,
       coalesce((select array_agg(c.sha256) from chunks c where c.document_id = d.id and not isempty(c.live)), '{}') as held
from documents d
where d.collection_id = %(collection_id)s and d.external_id = any(%(external_ids)s);

-- name: held-chunks
select sha256 from chunks where document_id = %(document_id)s and not isempty(live);

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

-- name: close-version
update versions set valid_to = %(valid_to)s where id = %(version_id)s;

-- name: insert-version
insert into versions (document_id, number, sha256, title, source, media_type, text, notes, valid_from, valid_to)
select %(document_id)s, coalesce(max(number), 0) + 1, %(sha256)s, %(title)s, %(source)s, %(media_type)s, %(text)s,
       %(notes)s, coalesce(%(valid_from)s::timestamptz, '-infinity'), coalesce(%(valid_to)s::timestamptz, 'infinity')
from versions
where document_id = %(document_id)s
returning id, number;

-- name: add-chunks
-- Ids of the chunks with these hashes; those that are not there are added.
with given as (
    select sha256, min(place) as place from unnest(%(sha256s)s::text[]) with ordinality g (sha256, place) group by sha256
), added as (
    insert into chunks (collection_id, document_id, sha256, term_count)
    select %(collection_id)s, %(document_id)s, sha256, 0 from given order by place
    on conflict (document_id, sha256) do nothing
    returning id, sha256
)
select id, sha256 from added
union all
select c.id, c.sha256 from chunks c join given g using (sha256) where c.document_id = %(document_id)s;

-- name: copy-vectors
copy vectors (collection_id, chunk_id, space, embedding) from stdin (format binary);

-- name: copy-version-chunks
copy version_chunks (version_id, ordinal, chunk_id, span_start, span_end, paragraph, heading_path, page) from stdin;

-- name: add-postings
with lexemes as materialized (
    select g.chunk_id, u.lexeme, least(cardinality(u.positions), 255) as frequency
    from collections c, unnest(%(chunk_ids)s::bigint[], %(texts)s::text[]) g (chunk_id, indexed),
         unnest(to_tsvector(c.language, g.indexed)) u
    where c.id = %(collection_id)s
), counted as (
    insert into terms (collection_id, term, document_count)
    select %(collection_id)s, lexeme, count(*) from lexemes group by lexeme order by lexeme
    on conflict (collection_id, term) do update set document_count = terms.document_count + excluded.document_count
    returning id, term
), posted as (
    insert into postings (term_id, chunk_id, frequency)
    select t.id, l.chunk_id, l.frequency from lexemes l join counted t on t.term = l.lexeme
), lengths as (
    select g.chunk_id, coalesce(sum(l.frequency), 0) as term_count
    from unnest(%(chunk_ids)s::bigint[]) g (chunk_id) left join lexemes l using (chunk_id)
    group by g.chunk_id
), measured as (
    update chunks c set term_count = n.term_count from lengths n where c.id = n.chunk_id
)
update collections
set chunk_count = chunk_count + n.chunks, term_count = collections.term_count + n.terms
from (select count(*) as chunks, coalesce(sum(term_count), 0) as terms from lengths) n
where id = %(collection_id)s;

-- name: refresh-live
-- When each chunk of the document is to be found: while a version that counts and holds it is valid.
update chunks c
set live = r.live
from (
    select k.id, coalesce(range_agg(tstzrange(v.valid_from, v.valid_to)) filter (where v.id is not null), '{}') as live
    from chunks k
    left join version_chunks m on m.chunk_id = k.id
    left join versions v on v.id = m.version_id and v.superseded_at is null
    where k.document_id = %(document_id)s
    group by k.id
) r
where c.id = r.id and c.live is distinct from r.live
returning c.id, isempty(c.live) as dead;

-- name: remove-postings
with gone as (
    delete from postings where chunk_id = any(%(chunk_ids)s) returning term_id
), counted as (
    update terms t set document_count = t.document_count - g.chunks
    from (select term_id, count(*) as chunks from gone group by term_id) g
    where t.id = g.term_id
), emptied as (
    update chunks c set term_count = 0
    from chunks o
    where c.id = o.id and c.id = any(%(chunk_ids)s)
    returning o.term_count
), devectored as (
    delete from vectors where chunk_id = any(%(chunk_ids)s)
)
update collections
set chunk_count = chunk_count - n.chunks, term_count = collections.term_count - n.terms
from (select count(*) as chunks, coalesce(sum(term_count), 0) as terms from emptied) n
where id = %(collection_id)s;

-- name: remove-unused-terms
delete from terms where collection_id = %(collection_id)s and document_count = 0;

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
where c.tenant = %(tenant)s and d.id::text = %(document_id)s and v.number = %(number)s;

-- name: search
-- One round trip. Lexical: BM25 in Lucene's variant (Robertson & Zaragoza 2009, idf with + 1 so that it stays positive)
-- over the question's lexemes joined by OR. Dense: the cosine of every vector of the collection. Both scores are exact for
-- every candidate of either side. Fusion: convex combination of the scores normalised by their theoretical minimum
-- (BM25 0, cosine -1) and their maximum over the candidates (Bruch, Gai, Ingber 2023, "tm2c2").
-- `coalesce(live @> ...)`: the planner takes half of the chunks to be live; of a bare `@>` it takes one in 200 and then walks
-- postings and vectors chunk by chunk (29 ms in place of 7 for 5,000 chunks).
with collection as materialized (
    select id, embedding_space, language, bm25_k1::float8 as k1, bm25_b::float8 as b, chunk_count,
           greatest(term_count::float8 / greatest(chunk_count, 1), 1e-9) as average,
           case %(mode)s when 'lexical' then 0 when 'dense' then 1 else dense_weight::float8 end as weight
    from collections
    where tenant = %(tenant)s and name = %(collection)s and (%(space)s::text is null or embedding_space = %(space)s)
), moment as materialized (
    select coalesce(%(as_of)s::timestamptz, now()) as at
), asked as materialized (
    select t.id, ln(1 + (c.chunk_count - t.document_count + 0.5) / (t.document_count + 0.5)::float8) as idf
    from collection c
    cross join lateral unnest(to_tsvector(c.language, %(text)s)) q
    join terms t on t.collection_id = c.id and t.term = q.lexeme
    where %(mode)s <> 'dense'
), matched as materialized (
    select p.chunk_id,
           sum(a.idf * p.frequency * (c.k1 + 1) / (p.frequency + c.k1 * (1 - c.b + c.b * k.term_count / c.average))) as bm25
    from collection c
    cross join asked a
    join postings p on p.term_id = a.id
    join chunks k on k.id = p.chunk_id and coalesce(k.live @> (select at from moment), false)
    group by p.chunk_id
), near as materialized (
    -- Scalar subqueries, not a join with `collection`: the planner then knows how many rows there are and hashes chunks.
    select e.chunk_id, 1 - (e.embedding <=> %(vector)s::halfvec) as cosine
    from vectors e
    join chunks k on k.id = e.chunk_id and coalesce(k.live @> (select at from moment), false)
    where e.collection_id = (select id from collection) and e.space = (select embedding_space from collection)
      and %(mode)s <> 'lexical'
), candidates as (
    (select chunk_id from matched order by bm25 desc, chunk_id limit %(depth)s)
    union
    (select chunk_id from near order by cosine desc, chunk_id limit %(depth)s)
), scored as (
    select d.chunk_id, coalesce(m.bm25, 0) as bm25, n.cosine
    from candidates d
    left join matched m using (chunk_id)
    left join near n using (chunk_id)
), normed as (
    select chunk_id, bm25, cosine,
           coalesce(bm25 / nullif(max(bm25) over (), 0), 0) as bm25_norm,
           coalesce((cosine + 1) / nullif(max(cosine + 1) over (), 0), 0) as cosine_norm
    from scored
), fused as (
    select n.*, c.weight * cosine_norm + (1 - c.weight) * bm25_norm as score
    from normed n
    cross join collection c
    order by score desc, chunk_id
    limit %(k)s
)
select f.chunk_id, d.id::text as document_id, d.external_id, v.number as version, v.title,
       substr(v.text, h.span_start + 1, h.span_end - h.span_start) as text,
       h.span_start, h.span_end, h.paragraph, h.heading_path, h.page, v.source,
       nullif(v.valid_from, '-infinity') as valid_from, nullif(v.valid_to, 'infinity') as valid_to,
       f.bm25, f.cosine, f.bm25_norm, f.cosine_norm, f.score
from fused f
cross join moment t
cross join lateral (
    select h.*
    from version_chunks h
    join versions w on w.id = h.version_id
    where h.chunk_id = f.chunk_id and w.superseded_at is null and w.valid_from <= t.at and t.at < w.valid_to
    order by h.ordinal
    limit 1
) h
join versions v on v.id = h.version_id
join documents d on d.id = v.document_id
order by f.score desc, f.chunk_id;
