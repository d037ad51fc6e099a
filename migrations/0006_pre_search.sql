-- Search in one round trip and, as the function is stable, in one snapshot: a document is seen before or after a change.

-- Own partition of a large collection, with HNSW; null: its vectors are in vectors_shared and scanned exactly.
alter table collections add column partition text;

create type found_chunk as (
    chunk_id    bigint,
    bm25        double precision,
    covered     double precision,  -- share of the question's idf mass that the chunk's terms carry
    cosine      double precision,
    bm25_norm   double precision,
    cosine_norm double precision,
    exact       double precision,  -- share of the typed identifiers and quoted phrases that it holds
    score       double precision
);

-- Versions that were valid at `at`, as it was known at `known`. A version ends where the next one begins.
create function visible_versions(collection bigint, at timestamptz, known timestamptz)
returns table (version_id bigint, document_id uuid) language sql stable as $$
    select id, document_id
    from (select distinct on (v.document_id) v.id, v.document_id, v.is_end
          from documents d
          join versions v on v.document_id = d.id
          where d.collection_id = collection and v.recorded_at <= known and known < coalesce(v.superseded_at, 'infinity')
            and v.valid_from <= at
          order by v.document_id, v.valid_from desc, v.id desc) latest
    where not is_end
$$;

-- The version of a document that was valid at `at`: as it counts now, or as it was known at `known`, with its end as known then.
create function version_at(document uuid, at timestamptz, known timestamptz)
returns table (id bigint, number integer, title text, source text, valid_from timestamptz, valid_to timestamptz, is_end boolean)
language sql stable rows 1 as $$
    select w.id, w.number, w.title, w.source, w.valid_from,
           case when known is null then w.valid_to
                else coalesce((select min(n.valid_from) from versions n
                               where n.document_id = document and n.valid_from > w.valid_from
                                 and n.recorded_at <= known and known < coalesce(n.superseded_at, 'infinity')), 'infinity') end,
           w.is_end
    from versions w
    where w.document_id = document and w.valid_from <= at
      and case when known is null then w.superseded_at is null
               else w.recorded_at <= known and known < coalesce(w.superseded_at, 'infinity') end
    order by w.valid_from desc
    limit 1
$$;

-- BM25 in Lucene's variant (Robertson & Zaragoza 2009, idf with + 1 so that it stays positive) of every chunk that holds
-- one of these terms. `base` = k1 (1 - b), `slope` = k1 b / average length, idf comes multiplied by k1 + 1.
create function match_terms(terms bigint[], weights double precision[], base double precision, slope double precision)
returns table (chunk_id bigint, bm25 double precision, covered double precision) language sql stable as $$
    select p.chunk_id, sum(a.weight * p.frequency / (p.frequency + base + slope * p.length)), sum(a.weight)
    from unnest(terms, weights) a (id, weight)
    join postings p on p.term_id = a.id
    group by p.chunk_id
$$;

-- The same for given chunks: a look-up for each pair.
create function match_terms_of(chunks bigint[], terms bigint[], weights double precision[], base double precision,
                               slope double precision)
returns table (chunk_id bigint, bm25 double precision, covered double precision) language sql stable as $$
    select p.chunk_id, sum(a.weight * p.frequency / (p.frequency + base + slope * p.length)), sum(a.weight)
    from unnest(terms, weights) a (id, weight)
    cross join unnest(chunks) c (id)
    cross join lateral (select o.chunk_id, o.frequency, o.length from postings o
                        where o.term_id = a.id and o.chunk_id = c.id offset 0) p
    group by p.chunk_id
$$;

create index versions_document on versions (document_id, valid_from);
-- Ids are random: the first few hundred of a collection are a sample of it.
create index documents_sample on documents (collection_id, id);

-- Whether a chunk is to be found: live then, of a document that the filter lets through. `offset 0`: a look-up for each row.
-- The planner does not know how few they are and would read the whole table.
create function is_wanted(chunk bigint, at timestamptz, filter jsonpath) returns table (is_wanted boolean) language sql stable as $$
    select h.live @> at and (filter is null or (select d.metadata @@ filter from documents d where d.id = h.document_id))
    from chunks h where h.id = chunk offset 0
$$;

create function search_chunks(
    collection_row collections, question text, exact_terms text[], phrases text[], question_vector halfvec,
    k integer, depth integer, at timestamptz, known timestamptz, filter jsonpath, mode text, wanted_weight double precision
) returns setof found_chunk language plpgsql stable rows 10 as $$
#variable_conflict use_column
declare
    c alias for collection_row;
    ids bigint[];       -- the question's terms that the collection has, rarest first
    weights double precision[];
    counts bigint[];
    bounds double precision[];
    exact_ids bigint[];
    exact_weights double precision[];
    mass double precision;
    base double precision := c.bm25_k1::float8 * (1 - c.bm25_b::float8);
    slope double precision := c.bm25_k1::float8 * c.bm25_b::float8 * c.chunk_count / greatest(c.term_count, 1);
    weight double precision := case mode when 'lexical' then 0 when 'dense' then 1
                                    else coalesce(wanted_weight, c.dense_weight::float8, 0.7) end;  -- 0.7: fuse.FAMILIAR
    allowed bigint[];
    share double precision := 1;  -- of the chunks that the filter lets through
    pool found_chunk[];
    width integer;                -- how many of the best are asked whether they are wanted
begin
    -- At most 64 terms, the rarest: more of them only happen in a pasted page, and each costs a look-up per candidate.
    select array_agg(t.id) filter (where t.id is not null), array_agg(t.idf * (c.bm25_k1 + 1)) filter (where t.id is not null),
           array_agg(t.document_count) filter (where t.id is not null),
           array_agg(t.idf * (c.bm25_k1 + 1) * t.max_frequency / (t.max_frequency + base + slope * t.max_frequency))
               filter (where t.id is not null),
           array_agg(t.id) filter (where t.id is not null and t.lexeme = any (exact_terms)),
           -- An identifier that stands everywhere (COVID-19 in a collection about it) says nothing: it fades out from 1/200 on.
           array_agg(least(1, (3 + c.chunk_count / 200.0) / greatest(t.document_count, 1)))
               filter (where t.id is not null and t.lexeme = any (exact_terms)),
           greatest((c.bm25_k1 + 1) * sum(t.idf), 1e-9)
    into ids, weights, counts, bounds, exact_ids, exact_weights, mass
    from (select w.lexeme, t.id, t.document_count, t.max_frequency,
                 ln(1 + (c.chunk_count - coalesce(t.document_count, 0) + 0.5)
                        / (coalesce(t.document_count, 0) + 0.5)::float8) as idf
          -- A word that one of the languages stops counts in none: Spanish "de" is rare among a few English texts, and
          -- would decide every Spanish question (nDCG@10 .77 in place of .97 on 240 paragraphs, 7 of them taken for English).
          from (select v.lexeme
                from (select u.lexeme, count(*) over (partition by p.position) as readers
                      from unnest(c.languages) l, unnest(to_tsvector(l, question)) u, unnest(u.positions) p (position)) v
                where v.readers >= cardinality(c.languages)
                union select unnest(exact_terms)) w
          left join lateral (select o.id, o.document_count, o.max_frequency from terms o
                             where o.collection_id = c.id and o.term = w.lexeme
                               and (o.document_count > 0 or known is not null)  -- superseded chunks are not counted
                             offset 0) t on true
          order by t.document_count nulls last, w.lexeme
          limit 64) t
    where mode <> 'dense';

    if known is not null then
        select array_agg(distinct m.chunk_id) into allowed
        from visible_versions(c.id, at, known) v
        join documents d on d.id = v.document_id and (filter is null or d.metadata @@ filter)
        join version_chunks m on m.version_id = v.version_id;
        pool := pool_of_allowed(c, allowed, ids, weights, counts, base, slope, question_vector, depth, mode);
    else
        if filter is not null then
            select a.allowed, a.share into allowed, share from allowed_chunks(c, filter, at) a;
        end if;
        width := case when filter is null then depth else depth * 1.5 / greatest(share, 0.01) end;
        pool := case when filter is not null and allowed is not null
                     then pool_of_allowed(c, allowed, ids, weights, counts, base, slope, question_vector, depth, mode)
                     when c.partition is null
                     then pool_of_shared(c, ids, weights, base, slope, question_vector, depth, width, at, filter, mode)
                     else pool_of_partition(c, ids, weights, counts, bounds, base, slope, question_vector, k, depth, width,
                                            share, at, filter, mode) end;
    end if;

    return query
    with candidates as (
        select p.chunk_id, p.bm25, p.covered / mass as covered, p.cosine,
               coalesce(p.bm25 / nullif(max(p.bm25) over (), 0), 0) as bm25_norm,
               -- From 0, not from the cosine's minimum of -1: that would make any two texts look alike.
               coalesce(greatest(p.cosine, 0) / nullif(max(greatest(p.cosine, 0)) over (), 0), 0) as cosine_norm,
               case when cardinality(exact_terms) + cardinality(phrases) = 0 then 0
                    else exact_share(p.chunk_id, exact_ids, exact_weights, cardinality(exact_terms), phrases) end as exact
        from unnest(pool) p
    )
    select chunk_id, bm25, covered, cosine, bm25_norm, cosine_norm, exact,
           weight * cosine_norm + (1 - weight) * bm25_norm + case mode when 'dense' then 0 else exact end as score
    from candidates
    order by score desc, cosine desc nulls last, chunk_id
    limit k;
end $$;

-- Share of the typed identifiers, each weighted, and of the quoted phrases that a chunk holds.
create function exact_share(
    chunk bigint, exact_ids bigint[], exact_weights double precision[], exact_count integer, phrases text[]
) returns double precision language sql stable as $$
    select (coalesce((select sum(x.weight)
                      from unnest(exact_ids, exact_weights) x (id, weight)
                      cross join lateral (select from postings p where p.term_id = x.id and p.chunk_id = chunk offset 0) p), 0)
            + (select count(*) from chunks h, unnest(phrases) p
               where h.id = chunk and strpos(lower(replace(h.context || ' ' || h.text, e'\n', ' ')), p) > 0))
           / (exact_count + cardinality(phrases))
$$;

-- The live chunks that a filter lets through; null when they are many: then it is cheaper to take the best chunks and ask for
-- each whether the filter lets it through. `share` is estimated from 300 documents before anything is counted.
-- Measured: a chunk that is let through costs 4 us; at 200,000 chunks HNSW is even with that at 4,000 of them, the scan of a
-- shared partition at a tenth of the collection.
create function allowed_chunks(c collections, filter jsonpath, at timestamptz, out allowed bigint[], out share double precision)
language plpgsql stable as $$
#variable_conflict use_column
begin
    share := 0;
    if c.chunk_count > 1000 then
        select coalesce(avg((s.metadata @@ filter)::integer), 0) into share
        from (select d.metadata from documents d where d.collection_id = c.id order by d.id limit 300) s;
    end if;
    if share > 0.1 or share * c.chunk_count > 20000 then
        return;
    end if;
    select coalesce(array_agg(a.id), '{}') into allowed
    from (select h.id
          from documents d
          cross join lateral (select h.id, h.live from chunks h where h.document_id = d.id offset 0) h
          where d.collection_id = c.id and d.metadata @@ filter and h.live @> at
          limit 5001) a;
    if cardinality(allowed) > 5000 then
        allowed := null;
    end if;
end $$;

-- Cosines of given chunks. The collection's row says where its vectors are, in the same snapshot: a search that began before
-- a promotion goes on reading the table that it saw.
create function cosines_of(c collections, chunks bigint[], question_vector halfvec)
returns table (chunk_id bigint, cosine double precision) language plpgsql stable as $$
#variable_conflict use_column
begin
    if c.partition is null then
        return query
        select e.chunk_id, -(e.embedding <#> question_vector)
        from unnest(chunks) a (id)
        cross join lateral (select o.chunk_id, o.embedding from vectors_shared o
                            where o.collection_id = c.id and o.space = c.embedding_space and o.chunk_id = a.id offset 0) e;
    else
        return query execute format(
            'select e.chunk_id, -(e.embedding <#> $1)
             from unnest($2) a (id)
             cross join lateral (select o.chunk_id, o.embedding from %I o
                                 where o.collection_id = $3 and o.space = $4 and o.chunk_id = a.id offset 0) e', c.partition)
        using question_vector, chunks, c.id, c.embedding_space;
    end if;
end $$;

-- Packed token vectors of given chunks.
create function tokens_of(c collections, chunks bigint[])
returns table (chunk_id bigint, tokens bytea) language plpgsql stable as $$
#variable_conflict use_column
begin
    if c.partition is null then
        return query
        select e.chunk_id, e.tokens
        from unnest(chunks) a (id)
        cross join lateral (select o.chunk_id, o.tokens from vectors_shared o
                            where o.collection_id = c.id and o.space = c.embedding_space and o.chunk_id = a.id offset 0) e;
    elsif cardinality(chunks) > 0 then
        return query execute format(
            'select e.chunk_id, e.tokens
             from unnest($1) a (id)
             cross join lateral (select o.chunk_id, o.tokens from %I o
                                 where o.collection_id = $2 and o.space = $3 and o.chunk_id = a.id offset 0) e', c.partition)
        using chunks, c.id, c.embedding_space;
    end if;
end $$;

-- Candidates among given chunks: all of them are scored exactly.
create function pool_of_allowed(
    c collections, allowed bigint[], ids bigint[], weights double precision[], counts bigint[], base double precision,
    slope double precision, question_vector halfvec, depth integer, mode text
) returns found_chunk[] language plpgsql stable as $$
#variable_conflict use_column
declare
    pool found_chunk[];
    -- A look-up for each pair costs about as much as reading six postings.
    is_few boolean := cardinality(allowed)::bigint * cardinality(ids) * 6 < (select sum(n) from unnest(counts) n);
begin
    with matched as materialized (
        select m.chunk_id, m.bm25, m.covered
        from match_terms(case when not is_few then ids end, weights, base, slope) m
        join unnest(allowed) a (id) on a.id = m.chunk_id
        union all
        select m.chunk_id, m.bm25, m.covered
        from match_terms_of(allowed, case when is_few then ids end, weights, base, slope) m
    ), near as materialized (
        select e.chunk_id, e.cosine
        from cosines_of(c, case when mode <> 'lexical' then allowed end, question_vector) e
    ), candidates as (
        (select chunk_id from matched order by bm25 desc, chunk_id limit depth)
        union
        (select chunk_id from near order by cosine desc, chunk_id limit depth)
    )
    select array_agg((d.chunk_id, coalesce(m.bm25, 0), coalesce(m.covered, 0), n.cosine, 0, 0, 0, 0)::found_chunk) into pool
    from candidates d left join matched m using (chunk_id) left join near n using (chunk_id);
    return pool;
end $$;

-- Candidates of a collection in the shared partition, through the B-tree: the rows of others are not touched. Both sides
-- score every chunk, then the best are asked whether they are wanted.
create function pool_of_shared(
    c collections, ids bigint[], weights double precision[], base double precision, slope double precision,
    question_vector halfvec, depth integer, first_width integer, at timestamptz, filter jsonpath, mode text
) returns found_chunk[] language plpgsql stable set enable_seqscan = off as $$
#variable_conflict use_column
declare
    pool found_chunk[];
    is_short boolean;
    width integer := first_width;
    needed integer := depth / 2;  -- at least k: the few that are not wanted are no reason to look again
begin
    loop
        with matched as materialized (
            select m.chunk_id, m.bm25, m.covered from match_terms(ids, weights, base, slope) m
        ), lexical as materialized (
            select m.chunk_id, m.bm25, h.is_wanted
            from (select chunk_id, bm25 from matched order by bm25 desc, chunk_id limit width) m
            cross join lateral is_wanted(m.chunk_id, at, filter) h
        ), near as materialized (
            select e.chunk_id, -(e.embedding <#> question_vector) as cosine
            from vectors_shared e
            where e.collection_id = c.id and e.space = c.embedding_space and mode <> 'lexical'
            order by cosine desc, e.chunk_id  -- the same expression as above: it is computed once for a row
            limit width
        ), dense as materialized (
            select n.chunk_id, n.cosine, h.is_wanted from near n cross join lateral is_wanted(n.chunk_id, at, filter) h
        ), candidates as (
            (select chunk_id from lexical where is_wanted order by bm25 desc, chunk_id limit depth)
            union
            (select chunk_id from dense where is_wanted order by cosine desc, chunk_id limit depth)
        )
        select array_agg((d.chunk_id, coalesce(m.bm25, 0), coalesce(m.covered, 0),
                          coalesce(n.cosine, x.cosine), 0, 0, 0, 0)::found_chunk),
               (select count(*) = width and count(*) filter (where is_wanted) < needed from lexical)
               or (select count(*) = width and count(*) filter (where is_wanted) < needed from dense)
        into pool, is_short
        from candidates d
        left join matched m using (chunk_id)
        left join dense n using (chunk_id)
        left join lateral (
            select -(e.embedding <#> question_vector) as cosine
            from vectors_shared e
            where e.collection_id = c.id and e.space = c.embedding_space
              and e.chunk_id = case when n.chunk_id is null and mode <> 'lexical' then d.chunk_id end  -- null: no look-up
        ) x on true;
        exit when not is_short;
        width := width * 8;  -- what is not wanted crowds out what is: look deeper
    end loop;
    return pool;
end $$;

-- The best chunks by BM25 without reading every posting (the idea of MaxScore, Turtle & Flood 1995): the chunks of the rare
-- terms are scored, and `rest`, the most that the common terms can add, says who can still be among the best `wanted`; only
-- those are looked up in the common terms. When a chunk without any rare term could be, the next terms are read as well.
-- The first `wanted` of the answer are exactly those of reading everything; behind them, up to `depth`, good ones.
create function best_by_terms(
    ids bigint[], weights double precision[], counts bigint[], bounds double precision[], base double precision,
    slope double precision, wanted integer, depth integer, first_width integer, at timestamptz, filter jsonpath,
    budget bigint,  -- postings that are read before the bound is tried
    out found_ids bigint[], out scores double precision[], out covers double precision[]
) language plpgsql stable as $$
#variable_conflict use_column
declare
    terms integer := coalesce(cardinality(ids), 0);
    first integer := 0;
    width integer := first_width;
    rest double precision;
    bar double precision;    -- the wanted-th best score so far, of the terms that were read
    best_count integer;
    some_ids bigint[];
    some_scores double precision[];
    some_covers double precision[];
begin
    if terms = 0 then
        return;
    end if;
    loop
        loop
            first := first + 1;
            exit when first = terms or (select sum(n) from unnest(counts[:first + 1]) n) > budget;
        end loop;
        rest := coalesce((select sum(b) from unnest(bounds[first + 1:]) b), 0) * (1 + 1e-9);
        loop
            with matched as materialized (
                select m.chunk_id, m.bm25, m.covered from match_terms(ids[:first], weights[:first], base, slope) m
            ), best as materialized (
                select m.chunk_id, m.bm25 from matched m order by m.bm25 desc, m.chunk_id limit width
            ), bars as materialized (
                select min(w.bm25) as bar
                from (select b.bm25 from best b cross join lateral is_wanted(b.chunk_id, at, filter) h where h.is_wanted
                      limit wanted) w  -- taken from the front: `best` is in order
                having count(*) = wanted
            )
            select array_agg(m.chunk_id), array_agg(m.bm25), array_agg(m.covered), (select bar from bars),
                   (select count(*) from best)
            into some_ids, some_scores, some_covers, bar, best_count
            from matched m
            where m.bm25 >= least((select case when rest < bar then bar - rest end from bars), (select min(b.bm25) from best b));
            exit when bar is not null or best_count < width;
            width := width * 8;  -- what is not wanted crowds out what is: look deeper
        end loop;
        exit when first = terms
               or rest < bar and (cardinality(some_ids) <= width
                                  or cardinality(some_ids) * (terms - first) * 6 <= (select sum(n) from unnest(counts[first + 1:]) n));
        budget := budget * 4;
    end loop;
    select array_agg(s.chunk_id), array_agg(s.bm25), array_agg(s.covered)
    into found_ids, scores, covers
    from (select s.chunk_id, s.bm25, s.covered
          from (select l.chunk_id, l.bm25 + coalesce(m.bm25, 0) as bm25, l.covered + coalesce(m.covered, 0) as covered
                from unnest(some_ids, some_scores, some_covers) l (chunk_id, bm25, covered)
                left join match_terms_of(some_ids, ids[first + 1:], weights[first + 1:], base, slope) m on m.chunk_id = l.chunk_id
                order by 2 desc, 1
                offset 0) s
          cross join lateral is_wanted(s.chunk_id, at, filter) h
          where h.is_wanted
          limit depth) s;
end $$;

-- The nearest wanted chunks of a collection with a partition of its own, by HNSW: the filter is applied inside of the scan,
-- which goes on until `depth` are found. It gives up at four times the number that should hold so many: then what is let
-- through lies elsewhere than the question, where HNSW finds the wrong ones (2 of 10), and every vector is compared instead.
create function nearest_by_index(
    c collections, question_vector halfvec, k integer, depth integer, share double precision, at timestamptz, filter jsonpath,
    out found_ids bigint[], out cosines double precision[]
) language plpgsql stable as $$
declare
    enough integer := greatest(ceil(4 * depth / share), 400);
begin
    perform set_config('hnsw.ef_search', least(1000, greatest(400, 2 * depth, 100 / share))::integer::text, true),
            set_config('hnsw.iterative_scan', 'relaxed_order', true), set_config('hnsw.max_scan_tuples', enough::text, true);
    execute format(
        'select array_agg(n.chunk_id), array_agg(n.cosine)
         from (select e.chunk_id, e.cosine
               from (select o.chunk_id, -(o.embedding::halfvec(%1$s) <#> $1::halfvec(%1$s)) as cosine
                     from %2$I o
                     where o.space = %3$L
                     order by o.embedding::halfvec(%1$s) <#> $1::halfvec(%1$s)
                     limit $5) e
               cross join lateral is_wanted(e.chunk_id, $3, $4) h
               where h.is_wanted
               limit $2) n', c.dimensions, c.partition, c.embedding_space)
    into found_ids, cosines using question_vector, depth, at, filter, enough;
    if coalesce(cardinality(found_ids), 0) < least(depth, c.chunk_count) then
        select n.found_ids, n.cosines into found_ids, cosines
        from nearest_by_scan(c, question_vector, depth, at, filter) n;
    end if;
end $$;

-- The same, exactly: every vector is compared.
create function nearest_by_scan(
    c collections, question_vector halfvec, depth integer, at timestamptz, filter jsonpath,
    out found_ids bigint[], out cosines double precision[]
) language plpgsql stable as $$
begin
    -- By an expression that no index has.
    execute format(
        'select array_agg(n.chunk_id), array_agg(n.cosine)
         from (select s.chunk_id, s.cosine
               from (select e.chunk_id, -(e.embedding <#> $1) as cosine
                     from %I e
                     where e.collection_id = $5 and e.space = $6
                     order by cosine desc, e.chunk_id
                     offset 0) s
               cross join lateral is_wanted(s.chunk_id, $3, $4) h
               where h.is_wanted
               limit $2) n', coalesce(c.partition, 'vectors_shared'))
    into found_ids, cosines using question_vector, depth, at, filter, c.id, c.embedding_space;
end $$;

-- Candidates of a collection with a partition of its own. Both scores are exact for all of them.
create function pool_of_partition(
    c collections, ids bigint[], weights double precision[], counts bigint[], bounds double precision[],
    base double precision, slope double precision, question_vector halfvec, k integer, depth integer,
    width integer, share double precision, at timestamptz, filter jsonpath, mode text
) returns found_chunk[] language plpgsql stable as $$
#variable_conflict use_column
declare
    pool found_chunk[];
    lexical record;
    dense record;
begin
    select * into lexical
    from best_by_terms(case when mode <> 'dense' then ids end, weights, counts, bounds, base, slope, greatest(k, 10), depth, width,
                       at, filter, 5000);
    select null::bigint[] as found_ids, null::float8[] as cosines into dense;
    if mode <> 'lexical' then
        select * into dense from nearest_by_index(c, question_vector, k, depth, share, at, filter);
    end if;
    with l as materialized (
        select * from unnest(lexical.found_ids, lexical.scores, lexical.covers) l (chunk_id, bm25, covered)
    ), d as materialized (
        select * from unnest(dense.found_ids, dense.cosines) d (chunk_id, cosine)
    ), o as materialized (
        select * from match_terms_of((select array_agg(d.chunk_id) from d where not exists (select from l where l.chunk_id = d.chunk_id)),
                                     case when mode <> 'dense' then ids end, weights, base, slope)
    ), x as materialized (
        select * from cosines_of(c, case when mode <> 'lexical' then
                                        (select array_agg(l.chunk_id) from l where not exists (select from d where d.chunk_id = l.chunk_id))
                                    end, question_vector)
    )
    select array_agg((coalesce(l.chunk_id, d.chunk_id), coalesce(l.bm25, o.bm25, 0), coalesce(l.covered, o.covered, 0),
                      coalesce(d.cosine, x.cosine), 0, 0, 0, 0)::found_chunk)
    into pool
    from l
    full join d on d.chunk_id = l.chunk_id
    left join o on o.chunk_id = d.chunk_id
    left join x on x.chunk_id = l.chunk_id;
    return pool;
end $$;

-- For the metric of live recall: how many of the exact k nearest the index finds.
create function recall_of_index(
    wanted_tenant text, wanted_collection text, question_vector halfvec, k integer, depth integer, as_of timestamptz,
    filter jsonpath, out hits integer, out wanted integer
) language plpgsql stable as $$
declare
    tenant integer := use_tenant(wanted_tenant);
    c collections;
    at timestamptz := coalesce(as_of, now());
    found bigint[];
    exact double precision[];
    share double precision := 1;
begin
    select * into c from collections o where o.tenant_id = tenant and o.name = wanted_collection;
    if c.partition is null then
        return;
    end if;
    if filter is not null then
        select a.allowed, a.share into found, share from allowed_chunks(c, filter, at) a;
        if found is not null then
            return;
        end if;
    end if;
    -- By cosine: chunks that are equally near stand for each other.
    select n.cosines into exact from nearest_by_scan(c, question_vector, k, at, filter) n;
    wanted := coalesce(cardinality(exact), 0);
    select least(count(*), wanted) into hits
    from nearest_by_index(c, question_vector, k, depth, share, at, filter) n, unnest(n.cosines) o (cosine)
    where o.cosine >= exact[wanted] - 1e-6;
end $$;

-- Partitions. Each step may be repeated: a promotion that was cut off goes on where it was, two at once do the work once.
-- Searches name the table that their snapshot's row of `collections` names, so none misses a vector while rows move.

create function lock_partition(collection bigint) returns void language sql as
    $$ select pg_advisory_xact_lock(hashtextextended('orchestrator partition ' || collection, 0)) $$;

-- A table for the collection's vectors with copies of them, not yet seen by anyone. Policies are not inherited by a partition
-- that is queried by its own name: it gets them from the table it was made after.
create function prepare_partition(collection bigint) returns text language plpgsql as $$
declare
    own text := 'vectors_' || collection;
    r record;
begin
    perform lock_partition(collection);
    if to_regclass(own) is null then
        execute format('create table %I (like vectors_shared including all, check (collection_id = %s))', own, collection);
        execute format('insert into %I select * from vectors_shared where collection_id = %s', own, collection);
        for r in select policyname, qual, with_check from pg_policies where tablename = 'vectors_shared' loop
            execute format('create policy %I on %I using (%s) with check (%s)', r.policyname, own, r.qual, r.with_check);
        end loop;
        execute format('alter table %I enable row level security, force row level security', own);
        if to_regrole('orchestrator_app') is not null then
            execute format('grant select, insert, update, delete on %I to orchestrator_app', own);
        end if;
        execute format('analyze %I', own);
    end if;
    return own;
end $$;

create function name_of_index(collection bigint, space text) returns text language sql immutable as
    $$ select 'vectors_' || collection || '_hnsw_' || left(md5(space), 8) $$;

-- HNSW over one space of a partition, built after its rows: row by row it would take several times as long.
create function index_partition(collection bigint, space text, dimensions integer) returns void language plpgsql as $$
declare
    definition text := format(
        'create index if not exists %I on %I using hnsw ((embedding::halfvec(%s)) halfvec_ip_ops) with (m = 24, ef_construction = 128)
         where space = %L',
        name_of_index(collection, space), 'vectors_' || collection, dimensions, space);
begin
    perform lock_partition(collection);
    perform set_config('maintenance_work_mem', '512MB', true);
    begin
        execute definition;
    exception when disk_full or out_of_memory then
        -- Parallel workers build in shared memory, of which a container has 64 MB.
        perform set_config('max_parallel_maintenance_workers', '0', true);
        execute definition;
    end;
end $$;

-- Before many rows come. Until it is built again every vector is compared.
create function unindex_partition(collection bigint, space text) returns void language plpgsql as $$
begin
    perform lock_partition(collection);
    execute format('drop index if exists %I', name_of_index(collection, space));
end $$;

-- The switch: takes over what changed since the copy, moves the rows and names the table, in one transaction.
create function attach_partition(collection bigint) returns void language plpgsql as $$
declare
    own text := 'vectors_' || collection;
begin
    perform lock_partition(collection);
    perform from collections where id = collection and partition is null for no key update;
    if not found then
        return;
    end if;
    -- Writers wait from here on. In the order in which they lock: the foreign key needs a lock of `chunks` at the end.
    lock table chunks in share row exclusive mode;
    lock table vectors, vectors_shared in share row exclusive mode;
    execute format('delete from %I p where not exists (
                        select from vectors_shared s where s.collection_id = p.collection_id and s.space = p.space
                        and s.chunk_id = p.chunk_id and s.embedding = p.embedding and s.tokens is not distinct from p.tokens)', own);
    execute format('insert into %I select * from vectors_shared where collection_id = $1 on conflict do nothing', own)
    using collection;
    delete from vectors_shared where collection_id = collection;
    execute format('alter table vectors attach partition %I for values in (%s)', own, collection);
    update collections set partition = own where id = collection;
end $$;

-- The way back. The table stays for the searches that began before, see drop_partition.
create function detach_partition(collection bigint) returns text language plpgsql as $$
declare
    own text;
begin
    perform lock_partition(collection);
    select c.partition into own from collections c where c.id = collection for no key update;
    if own is null then
        return null;
    end if;
    lock table chunks in share row exclusive mode;
    execute format('alter table vectors detach partition %I', own);
    execute format('insert into vectors_shared select * from %I', own);
    update collections set partition = null where id = collection;
    return own;
end $$;

-- The transactions of this database that are open now: each may still read what its snapshot names.
create function open_transactions() returns text[] language sql stable as $$
    select coalesce(array_agg(l.virtualtransaction), '{}')
    from pg_locks l join pg_stat_activity a using (pid)
    where l.locktype = 'virtualxid' and a.datname = current_database() and l.pid <> pg_backend_pid()
$$;

-- Removes the table of a collection that was demoted or is gone; false while one of these transactions is open.
create function drop_partition(partition text, older text[]) returns boolean language plpgsql as $$
begin
    if partition !~ '^vectors_[0-9]+$' or exists (select from collections c where c.partition = drop_partition.partition) then
        raise exception 'the partition % is in use', partition using errcode = 'object_in_use';
    end if;
    if older && open_transactions() then
        return false;
    end if;
    execute format('drop table if exists %I', partition);
    return true;
end $$;

-- What `search_passages` of the package calls: scores, and where each chunk stands in the version that is meant.
create function search_passages(
    wanted_tenant text, wanted_collection text, wanted_space text, question text, exact_terms text[], phrases text[],
    question_vector halfvec, k integer, depth integer, as_of timestamptz, known timestamptz, filter jsonpath, mode text,
    wanted_weight double precision, with_tokens boolean
) returns table (
    chunk_id bigint, document_id text, external_id text, version integer, title text, text text, context text,
    span_start integer, span_end integer, paragraph integer, heading_path text[], page integer, source text,
    valid_from timestamptz, valid_to timestamptz, metadata jsonb, bm25 double precision, covered double precision,
    cosine double precision, bm25_norm double precision, cosine_norm double precision, exact double precision,
    score double precision, tokens bytea
) language plpgsql stable rows 10 set plan_cache_mode = force_generic_plan as $$
#variable_conflict use_column
declare
    tenant integer := use_tenant(wanted_tenant);
    c collections;
    at timestamptz := coalesce(as_of, now());
begin
    select * into c from collections o
    where o.tenant_id = tenant and o.name = wanted_collection and (wanted_space is null or o.embedding_space = wanted_space);
    if c.id is null then
        return;
    end if;
    return query
    with found as materialized (
        select *
        from search_chunks(c, question, exact_terms, phrases, question_vector, k, depth, at, known, filter, mode, wanted_weight)
    )
    select f.chunk_id, d.id::text, d.external_id, v.number, v.title, h.text, h.context, m.span_start, m.span_end, m.paragraph,
           m.heading_path, m.page, v.source, nullif(v.valid_from, '-infinity'), nullif(v.valid_to, 'infinity'), d.metadata,
           f.bm25, f.covered, f.cosine, f.bm25_norm, f.cosine_norm, f.exact, f.score, e.tokens
    from found f
    join chunks h on h.id = f.chunk_id
    join documents d on d.id = h.document_id
    cross join lateral version_at(d.id, at, known) v
    cross join lateral (
        select o.* from version_chunks o where o.version_id = v.id and o.chunk_id = f.chunk_id order by o.ordinal limit 1
    ) m
    left join tokens_of(c, case when with_tokens then (select array_agg(o.chunk_id) from found o) end) e
           on e.chunk_id = f.chunk_id
    order by f.score desc, f.cosine desc nulls last, f.chunk_id;
end $$;
