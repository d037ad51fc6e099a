-- Statements of knowledge/spaces.py.

-- name: add-space
insert into collection_spaces (collection_id, space, dimensions)
select id, embedding_space, dimensions from collections where id = %(collection_id)s
union
select %(collection_id)s, %(space)s, %(dimensions)s
on conflict (collection_id, space) do nothing;

-- name: list-spaces
select s.space, s.dimensions, s.space = c.embedding_space as is_serving, s.switched_at, s.judged,
       (select count(*) from vectors e where e.collection_id = c.id and e.space = s.space) as vectors,
       (select count(*) from chunks k where k.collection_id = c.id) as chunks
from collection_spaces s join collections c on c.id = s.collection_id
where c.id = %(collection_id)s
order by s.created_at, s.space;

-- name: chunks-without-vector
-- With tokens: also those whose vector came without token vectors, which no re-ranker read then.
select k.id, k.context, k.text from chunks k
where k.collection_id = %(collection_id)s and k.id > %(after)s
  and not exists (select from vectors e where e.collection_id = %(collection_id)s and e.space = %(space)s and e.chunk_id = k.id
                  and (e.tokens is not null or not %(with_tokens)s))
order by k.id
limit %(limit)s;

-- name: count-without-vector
select count(*) as missing from chunks k
where k.collection_id = %(collection_id)s
  and not exists (select from vectors e where e.collection_id = %(collection_id)s and e.space = %(space)s and e.chunk_id = k.id
                  and (e.tokens is not null or not %(with_tokens)s));

-- name: move-vectors-of-space
-- Joined with the chunks that are still there: what was erased while its vector was made does not come back. A vector that
-- is there stays, and gets the token vectors that it lacks.
with moved as (delete from incoming_vectors returning *), alive as (
    select k.id from chunks k where k.collection_id = %(collection_id)s and k.id = any (%(chunk_ids)s) for key share
)
insert into vectors (collection_id, chunk_id, space, embedding, tokens)
select %(collection_id)s, m.chunk_id, %(space)s, m.embedding, m.tokens from moved m join alive a on a.id = m.chunk_id
on conflict (collection_id, space, chunk_id) do update set tokens = excluded.tokens
where vectors.tokens is null and excluded.tokens is not null;

-- name: serve-space
update collections set embedding_space = %(space)s, dimensions = s.dimensions
from collection_spaces s
where collections.id = %(collection_id)s and s.collection_id = collections.id and s.space = %(space)s;

-- name: mark-serving
update collection_spaces set switched_at = now() where collection_id = %(collection_id)s and space = %(space)s;

-- name: record-judgement
update collection_spaces set judged = %(judged)s where collection_id = %(collection_id)s and space = %(space)s;

-- name: remove-vectors-of-space
delete from vectors where collection_id = %(collection_id)s and space = %(space)s;

-- name: remove-space
delete from collection_spaces where collection_id = %(collection_id)s and space = %(space)s;

-- name: nearest-in-space
-- The documents nearest to a question, in a space that need not be the one that serves.
select external_id from (
    select d.external_id, min(e.embedding <#> %(vector)s::halfvec) as distance
    from vectors e join chunks k on k.id = e.chunk_id and k.live @> now() join documents d on d.id = k.document_id
    where e.collection_id = %(collection_id)s and e.space = %(space)s
    group by d.external_id) x
order by distance, external_id
limit %(k)s;
