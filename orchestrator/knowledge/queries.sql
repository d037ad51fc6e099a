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

-- name: versions-that-count
select v.document_id, v.id, v.number, v.sha256, v.title, v.source, nullif(v.valid_from, '-infinity') as valid_from,
       nullif(v.valid_to, 'infinity') as valid_to, v.is_end
from versions v
where v.document_id = any(%(document_ids)s) and v.superseded_at is null
order by v.document_id, v.valid_from;

-- name: database-now
select clock_timestamp() as now;

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
), wanted as materialized (
    select lexeme, max(frequency) as frequency from lexemes group by lexeme
), known as materialized (
    -- `limit` keeps this a look-up per term whatever the planner believes of a table that grows from nothing.
    select w.lexeme, w.frequency, t.id, t.max_frequency < w.frequency as is_low
    from wanted w
    left join lateral (select o.id, o.max_frequency from terms o
                       where o.collection_id = %(collection_id)s and o.term = w.lexeme limit 1) t on true
), raised as (
    update terms t set max_frequency = k.frequency from known k where k.is_low and t.id = k.id
), added as (
    insert into terms (collection_id, term, max_frequency)
    select %(collection_id)s, lexeme, frequency from known where id is null order by lexeme
    returning id, term
), named as (
    -- An upsert of all terms would write each of them again, and check its foreign key: a quarter of the statement's time.
    select id, lexeme as term from known where id is not null union all select id, term from added
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

-- name: remove-unused-terms
delete from terms t
where t.collection_id = %(collection_id)s and t.document_count = 0
  and not exists (select from postings p where p.term_id = t.id);

-- name: refresh-statistics
analyze documents, versions, chunks, version_chunks, vectors, terms, postings;

-- name: erase-document
delete from documents where collection_id = %(collection_id)s and external_id = %(external_id)s;

-- name: version-by-id
select d.id::text as document_id, d.external_id, v.number, v.title, v.media_type, v.source, v.text,
       nullif(v.valid_from, '-infinity') as valid_from, nullif(v.valid_to, 'infinity') as valid_to, v.superseded_at
from versions v
join documents d on d.id = v.document_id
join collections c on c.id = d.collection_id
where c.tenant_id = current_tenant() and d.id::text = %(document_id)s and v.number = %(number)s;

-- name: learned-weights
select dense_weight, rerank_weight from collections where tenant_id = current_tenant() and name = %(name)s;

-- name: current-texts
select d.external_id, v.text, d.metadata
from unnest(%(external_ids)s::text[]) with ordinality a (external_id, place)
join documents d on d.collection_id = %(collection_id)s and d.external_id = a.external_id
join versions v on v.document_id = d.id and v.superseded_at is null and v.valid_from <= now() and now() < v.valid_to
where not v.is_end
order by a.place;

-- name: set-learned-weights
update collections set dense_weight = %(dense_weight)s, rerank_weight = %(rerank_weight)s, learned = %(learned)s
where id = %(collection_id)s;

-- name: read-spans
select substr(v.text, s.first + 1, s.last - s.first) as text
from unnest(%(document_ids)s::uuid[], %(numbers)s::integer[], %(starts)s::integer[], %(ends)s::integer[])
     with ordinality s (document_id, number, first, last, place)
join versions v on v.tenant_id = current_tenant() and v.document_id = s.document_id and v.number = s.number
order by s.place;

-- name: search
-- One round trip; the function is in migrations/0006_pre_search.sql.
select * from search_passages(
    %(tenant)s, %(collection)s, %(space)s, %(text)s, %(exact_terms)s, %(phrases)s, %(vector)s::halfvec, %(k)s, %(depth)s,
    %(as_of)s, %(known_at)s, %(filter)s::jsonpath, %(mode)s, %(dense_weight)s, %(with_tokens)s);
