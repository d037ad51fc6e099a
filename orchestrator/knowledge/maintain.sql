-- Statements of knowledge/erase.py and knowledge/verify.py.

-- name: receipt-of-document
insert into erasures (collection_id, document_id, name_sha256s, text_sha256s, chunks)
select d.collection_id, d.id,
       (select array_agg(encode(sha256(convert_to(name, 'UTF8')), 'hex')) from unnest(d.renamed_from || d.external_id) name),
       coalesce((select array_agg(distinct v.sha256) from versions v where v.document_id = d.id), '{}'),
       (select count(*) from chunks c where c.document_id = d.id)
from documents d
where d.collection_id = %(collection_id)s and d.external_id = %(external_id)s
returning id, document_id::text as document_id, name_sha256s, text_sha256s, chunks, erased_at, purged_at;

-- name: list-erasures
select id, document_id::text as document_id, name_sha256s, text_sha256s, chunks, erased_at, purged_at
from erasures
where collection_id = %(collection_id)s
order by id;

-- name: permit-erased
update erasures set permitted_at = now()
where collection_id = %(collection_id)s and permitted_at is null
  and encode(sha256(convert_to(%(external_id)s, 'UTF8')), 'hex') = any (name_sha256s)
returning id;

-- name: mark-purged
update erasures set purged_at = now() where purged_at is null and erased_at <= %(before)s;

-- name: vector-partitions
select c.oid::regclass::text as name from pg_inherits i join pg_class c on c.oid = i.inhrelid where i.inhparent = 'vectors'::regclass;

-- name: verify-texts
select v.id, d.external_id, v.number from versions v join documents d on d.id = v.document_id
where d.collection_id = %(collection_id)s and encode(sha256(convert_to(v.text, 'UTF8')), 'hex') <> v.sha256;

-- name: verify-spans
select d.external_id, v.number, m.ordinal
from documents d join versions v on v.document_id = d.id join version_chunks m on m.version_id = v.id
join chunks c on c.id = m.chunk_id
where d.collection_id = %(collection_id)s
  and (c.document_id <> d.id or substr(v.text, m.span_start + 1, m.span_end - m.span_start) <> c.text);

-- name: verify-chunk-hashes
select c.id, d.external_id from chunks c join documents d on d.id = c.document_id
where c.collection_id = %(collection_id)s
  and encode(sha256(convert_to(case when c.context = '' then c.text else c.context || e'\n\n' || c.text end, 'UTF8')), 'hex')
      <> c.sha256;

-- name: verify-vectors
-- Chunks without a vector of the collection's space, or with one that no search could use.
select c.id, d.external_id from chunks c join documents d on d.id = c.document_id join collections o on o.id = c.collection_id
left join vectors e on e.collection_id = o.id and e.space = o.embedding_space and e.chunk_id = c.id
where o.id = %(collection_id)s
  and (e.chunk_id is null or vector_dims(e.embedding) <> o.dimensions or abs(l2_norm(e.embedding) - 1) > 0.01);

-- name: verify-orphaned-vectors
select e.chunk_id from vectors e left join chunks c on c.id = e.chunk_id and c.collection_id = e.collection_id
where e.collection_id = %(collection_id)s and c.id is null;

-- name: verify-orphaned-chunks
select c.id, d.external_id from chunks c join documents d on d.id = c.document_id
where c.collection_id = %(collection_id)s and not exists (select from version_chunks m where m.chunk_id = c.id);

-- name: verify-orphaned-postings
select p.term_id, p.chunk_id from chunks c join postings p on p.chunk_id = c.id
left join terms t on t.id = p.term_id and t.collection_id = c.collection_id
where c.collection_id = %(collection_id)s and t.id is null;

-- name: verify-validity
select n.id, d.external_id from documents d join (
    select v.id, v.document_id, v.valid_to, lead(v.valid_from) over (partition by v.document_id order by v.valid_from) as next
    from versions v where v.superseded_at is null) n on n.document_id = d.id
where d.collection_id = %(collection_id)s and n.valid_to <> coalesce(n.next, 'infinity');

-- name: verify-live
select c.id, d.external_id from chunks c join documents d on d.id = c.document_id
left join lateral (
    select range_agg(tstzrange(v.valid_from, v.valid_to)) as live
    from version_chunks m join versions v on v.id = m.version_id and v.superseded_at is null
    where m.chunk_id = c.id) r on true
where c.collection_id = %(collection_id)s and c.live is distinct from coalesce(r.live, '{}');

-- name: verify-frequencies
select t.id, t.term, t.document_count, coalesce(n.held, 0) as held
from terms t
left join (select p.term_id, count(*) as held, max(p.frequency) as most
           from postings p join chunks c on c.id = p.chunk_id
           where c.collection_id = %(collection_id)s and not isempty(c.live) group by p.term_id) n on n.term_id = t.id
where t.collection_id = %(collection_id)s
  and (t.document_count <> coalesce(n.held, 0) or t.max_frequency < coalesce(n.most, 0));

-- name: verify-counts
select o.chunk_count, n.chunks, o.term_count, n.terms
from collections o,
     (select count(*) as chunks, coalesce(sum(term_count), 0) as terms from chunks
      where collection_id = %(collection_id)s and not isempty(live)) n
where o.id = %(collection_id)s and (o.chunk_count, o.term_count) <> (n.chunks, n.terms);

-- name: page-of-chunks
select c.id, c.document_id, d.external_id, c.language::text as language, c.context, c.text, c.sha256
from chunks c join documents d on d.id = c.document_id
where c.collection_id = %(collection_id)s and c.id > %(after)s
order by c.id
limit %(limit)s;

-- name: verify-postings
-- Chunks whose postings are not the lexemes of their text, frequencies and lengths included.
with lexemes as (
    select g.chunk_id, u.lexeme, least(cardinality(u.positions), 255) as frequency, true as is_word
    from unnest(%(chunk_ids)s::bigint[], %(texts)s::text[]) g (chunk_id, indexed),
         unnest(to_tsvector(%(language)s::regconfig, g.indexed)) u
    union all
    select chunk_id, term, frequency, false
    from unnest(%(exact_ids)s::bigint[], %(exact_terms)s::text[], %(exact_counts)s::integer[]) x (chunk_id, term, frequency)
), wanted as (
    select chunk_id, lexeme as term, frequency,
           coalesce(sum(frequency) filter (where is_word) over (partition by chunk_id), 0) as length
    from lexemes
), held as (
    select p.chunk_id, t.term, p.frequency, p.length::bigint as length
    from postings p join terms t on t.id = p.term_id and t.collection_id = %(collection_id)s
    where p.chunk_id = any (%(chunk_ids)s)
)
select distinct chunk_id from (
    (select * from wanted except select * from held) union all (select * from held except select * from wanted)) x;

-- name: mend-counts
update collections o
set chunk_count = n.chunks, term_count = n.terms
from (select count(*) as chunks, coalesce(sum(term_count), 0) as terms from chunks
      where collection_id = %(collection_id)s and not isempty(live)) n
where o.id = %(collection_id)s;

-- name: mend-frequencies
update terms t
set document_count = coalesce(n.held, 0), max_frequency = greatest(t.max_frequency, n.most)
from terms o
left join (select p.term_id, count(*) as held, max(p.frequency) as most
           from postings p join chunks c on c.id = p.chunk_id
           where c.collection_id = %(collection_id)s and not isempty(c.live) group by p.term_id) n on n.term_id = o.id
where o.id = t.id and t.collection_id = %(collection_id)s;

-- name: mend-live
update chunks c
set live = coalesce(r.live, '{}')
from chunks o
left join lateral (
    select range_agg(tstzrange(v.valid_from, v.valid_to)) as live
    from version_chunks m join versions v on v.id = m.version_id and v.superseded_at is null
    where m.chunk_id = o.id) r on true
where o.id = c.id and c.collection_id = %(collection_id)s and c.live is distinct from coalesce(r.live, '{}');

-- name: remove-postings
delete from postings where chunk_id = any (%(chunk_ids)s);

-- name: remove-orphaned-postings
delete from postings p using chunks c
where c.id = p.chunk_id and c.collection_id = %(collection_id)s
  and not exists (select from terms t where t.id = p.term_id and t.collection_id = c.collection_id);

-- name: remove-orphaned-vectors
delete from vectors e
where e.collection_id = %(collection_id)s
  and not exists (select from chunks c where c.id = e.chunk_id and c.collection_id = e.collection_id);

-- name: remove-vectors
delete from vectors where collection_id = %(collection_id)s and space = %(space)s and chunk_id = any (%(chunk_ids)s);

-- name: mend-validity
update versions v
set valid_to = n.next
from (select w.id, coalesce(lead(w.valid_from) over (partition by w.document_id order by w.valid_from), 'infinity') as next
      from versions w join documents d on d.id = w.document_id
      where d.collection_id = %(collection_id)s and w.superseded_at is null) n
where v.id = n.id and v.valid_to <> n.next;

-- name: remove-orphaned-chunks
delete from chunks c
where c.collection_id = %(collection_id)s and not exists (select from version_chunks m where m.chunk_id = c.id);

-- name: chunks-by-id
select id, context, text from chunks where collection_id = %(collection_id)s and id = any (%(chunk_ids)s) order by id;

-- name: counted-chunks
select id from chunks where document_id = %(document_id)s::uuid and not isempty(live);
