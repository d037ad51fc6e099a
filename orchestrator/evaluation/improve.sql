-- Statements of evaluation/journal.py.

-- name: searched-with
select dense_weight, rerank_weight, learned from collections where tenant_id = current_tenant() and name = %(name)s;

-- name: exchange-learned-weights
-- Only from what it is believed to be: who changed it meanwhile is not overruled.
update collections set dense_weight = %(dense)s, rerank_weight = %(second)s, learned = %(learned)s
where tenant_id = current_tenant() and name = %(name)s
  and dense_weight is not distinct from %(was_dense)s::real and rerank_weight is not distinct from %(was_second)s::real
  and learned = %(was_learned)s
returning id;
