-- Statements of knowledge/partitions.py.

-- name: partition-of
select id, name, embedding_space, dimensions, chunk_count, partition,
       to_regclass('vectors_' || id) is not null as has_table,
       to_regclass(name_of_index(id, embedding_space)) is not null as has_index
from collections
where tenant_id = current_tenant() and name = %(name)s;

-- name: limit-partition-wait
-- Readers queue behind a lock that is waited for: not for long.
select set_config('lock_timeout', '500ms', true);

-- name: prepare-partition
select prepare_partition(%(collection_id)s);

-- name: index-partition
select index_partition(%(collection_id)s, %(space)s, %(dimensions)s);

-- name: unindex-partition
select unindex_partition(%(collection_id)s, %(space)s);

-- name: attach-partition
select attach_partition(%(collection_id)s);

-- name: detach-partition
select detach_partition(%(collection_id)s) as partition;

-- name: open-transactions
select open_transactions() as older;

-- name: drop-partition
select drop_partition(%(partition)s, %(older)s) as is_dropped;

-- name: recall-of-index
select hits, wanted
from recall_of_index(%(tenant)s, %(collection)s, %(vector)s::halfvec, %(k)s, %(depth)s, %(as_of)s, %(filter)s::jsonpath);
