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

-- `offset 0`: a look-up for each row. The planner does not know how few they are and would read the whole table.
create function is_live(chunk bigint, at timestamptz) returns table (is_live boolean) language sql stable as $$
    select h.live @> at from chunks h where h.id = chunk offset 0
$$;

create function search_chunks(
    collection_row collections, question text, exact_terms text[], phrases text[], question_vector halfvec,
    k integer, depth integer, at timestamptz, known timestamptz, filter jsonpath, mode text, default_weight double precision
) returns setof found_chunk language plpgsql stable rows 10 as $$
#variable_conflict use_column
declare
    c alias for collection_row;
    ids bigint[];       -- the question's terms that the collection has, rarest first
    weights double precision[];
    counts bigint[];
    bounds double precision[];
    exact_ids bigint[];
    mass double precision;
    base double precision := c.bm25_k1::float8 * (1 - c.bm25_b::float8);
    slope double precision := c.bm25_k1::float8 * c.bm25_b::float8 * c.chunk_count / greatest(c.term_count, 1);
    weight double precision := case mode when 'lexical' then 0 when 'dense' then 1
                                    else coalesce(c.dense_weight::float8, default_weight) end;
    allowed bigint[];
    pool found_chunk[];
    is_short boolean;
    width integer := depth + depth / 2;
begin
    select array_agg(t.id order by t.document_count, t.id), array_agg(q.idf * (c.bm25_k1 + 1) order by t.document_count, t.id),
           array_agg(t.document_count order by t.document_count, t.id),
           array_agg(q.idf * (c.bm25_k1 + 1) * t.max_frequency / (t.max_frequency + base + slope * t.max_frequency)
                     order by t.document_count, t.id),
           array_agg(t.id) filter (where q.lexeme = any (exact_terms)),
           (c.bm25_k1 + 1) * sum(q.idf_or_rarest)
    into ids, weights, counts, bounds, exact_ids, mass
    from (select w.lexeme, t.id,
                 ln(1 + (c.chunk_count - t.document_count + 0.5) / (t.document_count + 0.5)::float8) as idf,
                 ln(1 + (c.chunk_count - coalesce(t.document_count, 0) + 0.5)
                        / (coalesce(t.document_count, 0) + 0.5)::float8) as idf_or_rarest
          from (select u.lexeme from unnest(c.languages) l, unnest(to_tsvector(l, question)) u
                union select unnest(exact_terms)) w
          left join terms t on t.collection_id = c.id and t.term = w.lexeme and t.document_count > 0) q
    left join terms t on t.id = q.id
    where mode <> 'dense' or q.id is null;
    -- array_agg over a left join brings a null for each unknown word.
    weights := array_remove(weights, null);
    ids := array_remove(ids, null);
    mass := greatest(mass, 1e-9);

    if filter is not null or known is not null then
        if known is null then
            select array_agg(h.id) into allowed
            from documents d join chunks h on h.document_id = d.id
            where d.collection_id = c.id and d.metadata @@ filter and h.live @> at;
        else
            select array_agg(distinct m.chunk_id) into allowed
            from visible_versions(c.id, at, known) v
            join documents d on d.id = v.document_id and (filter is null or d.metadata @@ filter)
            join version_chunks m on m.version_id = v.version_id;
        end if;
        pool := pool_of_allowed(c, allowed, ids, weights, base, slope, question_vector, depth, mode);
    else
        loop
            if c.partition is null then
                with matched as materialized (
                    select m.chunk_id, m.bm25, m.covered from match_terms(ids, weights, base, slope) m
                ), lexical as materialized (
                    select m.chunk_id, m.bm25, h.is_live
                    from (select chunk_id, bm25 from matched order by bm25 desc, chunk_id limit width) m
                    cross join lateral is_live(m.chunk_id, at) h
                ), near as materialized (
                    select e.chunk_id, -(e.embedding <#> question_vector) as cosine
                    from vectors_shared e
                    where e.collection_id = c.id and e.space = c.embedding_space and mode <> 'lexical'
                    order by e.embedding <#> question_vector, e.chunk_id
                    limit width
                ), dense as materialized (
                    select n.chunk_id, n.cosine, h.is_live from near n cross join lateral is_live(n.chunk_id, at) h
                ), candidates as (
                    (select chunk_id from lexical where is_live order by bm25 desc, chunk_id limit depth)
                    union
                    (select chunk_id from dense where is_live order by cosine desc, chunk_id limit depth)
                )
                select array_agg((d.chunk_id, coalesce(m.bm25, 0), coalesce(m.covered, 0),
                                  coalesce(n.cosine, x.cosine), 0, 0, 0, 0)::found_chunk),
                       (select count(*) = width and count(*) filter (where is_live) < depth from lexical)
                       or (select count(*) = width and count(*) filter (where is_live) < depth from dense)
                into pool, is_short
                from candidates d
                left join matched m using (chunk_id)
                left join dense n using (chunk_id)
                left join lateral (
                    select -(e.embedding <#> question_vector) as cosine
                    from vectors_shared e
                    where e.collection_id = c.id and e.space = c.embedding_space and e.chunk_id = d.chunk_id
                      and n.chunk_id is null and mode <> 'lexical'
                ) x on true;
            else
                select p.pool, p.is_short into pool, is_short
                from pool_of_partition(c, ids, weights, counts, bounds, base, slope, question_vector, k, depth, width, at, mode) p;
            end if;
            exit when not is_short;
            width := width * 8;  -- what has passed crowds out what is valid: look deeper
        end loop;
    end if;

    return query
    with candidates as (
        select p.chunk_id, p.bm25, p.covered / mass as covered, p.cosine,
               coalesce(p.bm25 / nullif(max(p.bm25) over (), 0), 0) as bm25_norm,
               -- From 0, not from the cosine's minimum of -1: that would make any two texts look alike.
               coalesce(greatest(p.cosine, 0) / nullif(max(greatest(p.cosine, 0)) over (), 0), 0) as cosine_norm,
               case when cardinality(exact_terms) + cardinality(phrases) = 0 then 0
                    else exact_share(p.chunk_id, exact_ids, cardinality(exact_terms), phrases) end as exact
        from unnest(pool) p
    )
    select chunk_id, bm25, covered, cosine, bm25_norm, cosine_norm, exact,
           weight * cosine_norm + (1 - weight) * bm25_norm + case mode when 'dense' then 0 else exact end as score
    from candidates
    order by score desc, chunk_id
    limit k;
end $$;

-- Share of the typed identifiers and quoted phrases that a chunk holds.
create function exact_share(chunk bigint, exact_ids bigint[], exact_count integer, phrases text[])
returns double precision language sql stable as $$
    select ((select count(*) from postings where term_id = any (exact_ids) and chunk_id = chunk)
            + (select count(*) from chunks h, unnest(phrases) p where h.id = chunk and strpos(lower(h.text), p) > 0))::float8
           / (exact_count + cardinality(phrases))
$$;

-- Candidates among given chunks: all of them are scored exactly.
create function pool_of_allowed(
    c collections, allowed bigint[], ids bigint[], weights double precision[], base double precision, slope double precision,
    question_vector halfvec, depth integer, mode text
) returns found_chunk[] language plpgsql stable as $$
#variable_conflict use_column
declare
    pool found_chunk[];
begin
    with matched as materialized (
        select m.chunk_id, m.bm25, m.covered
        from match_terms(ids, weights, base, slope) m
        join unnest(allowed) a (id) on a.id = m.chunk_id
    ), near as materialized (
        -- `+ 0`: no index may order this, whatever the plan.
        select e.chunk_id, -(e.embedding <#> question_vector) as cosine
        from unnest(allowed) a (id)
        cross join lateral (select o.chunk_id, o.embedding from vectors o
                            where o.collection_id = c.id and o.space = c.embedding_space and o.chunk_id = a.id offset 0) e
        where mode <> 'lexical'
        order by (e.embedding <#> question_vector) + 0, e.chunk_id
    ), candidates as (
        (select chunk_id from matched order by bm25 desc, chunk_id limit depth)
        union
        (select chunk_id from near order by cosine desc, chunk_id limit depth)
    )
    select array_agg((d.chunk_id, coalesce(m.bm25, 0), coalesce(m.covered, 0), n.cosine, 0, 0, 0, 0)::found_chunk) into pool
    from candidates d left join matched m using (chunk_id) left join near n using (chunk_id);
    return pool;
end $$;

-- Candidates of a collection with a partition of its own: HNSW for the dense side; for BM25 the rare terms first, the common
-- ones only for what the rare ones found, once the bound on their scores says that nothing else reaches the best k.
create function pool_of_partition(
    c collections, ids bigint[], weights double precision[], counts bigint[], bounds double precision[],
    base double precision, slope double precision, question_vector halfvec, k integer, depth integer, width integer,
    at timestamptz, mode text, out pool found_chunk[], out is_short boolean
) language plpgsql stable as $$
#variable_conflict use_column
declare
    terms integer := coalesce(cardinality(ids), 0);
    first integer := least(terms, 1);
    rest double precision;
    bar double precision;
    lexical_ids bigint[];
    lexical_scores double precision[];
    lexical_covered double precision[];
    dense_ids bigint[];
    cosines double precision[];
    fetched integer := 0;
    is_sure boolean;
    wanted integer := greatest(k, 10);
begin
    while first < terms and (select sum(n) from unnest(counts[:first + 1]) n) <= 5000 loop
        first := first + 1;
    end loop;
    loop
        exit when terms = 0;
        rest := coalesce((select sum(b) from unnest(bounds[first + 1:]) b), 0);
        with matched as materialized (
            select m.chunk_id, m.bm25, m.covered from match_terms(ids[:first], weights[:first], base, slope) m
        ), best as materialized (
            select m.chunk_id, m.bm25, m.covered from matched m order by m.bm25 desc, m.chunk_id limit width
        ), live as (
            select b.* from best b cross join lateral is_live(b.chunk_id, at) h where h.is_live
        )
        select array_agg(l.chunk_id order by l.bm25 desc, l.chunk_id), array_agg(l.bm25 order by l.bm25 desc, l.chunk_id),
               array_agg(l.covered order by l.bm25 desc, l.chunk_id), (select count(*) from best),
               -- Every chunk that can still reach the best is among those that were kept.
               (select count(*) from best) < width or (select min(b.bm25) from best b) + rest < (array_agg(l.bm25 order by l.bm25 desc))[wanted]
        into lexical_ids, lexical_scores, lexical_covered, fetched, is_sure
        from live l;
        bar := lexical_scores[wanted];
        exit when first = terms or (bar is not null and rest < bar and is_sure);
        first := first + 1;
    end loop;
    is_short := fetched = width and coalesce(cardinality(lexical_ids), 0) < depth;
    if first < terms then
        select array_agg(s.chunk_id order by s.bm25 desc, s.chunk_id), array_agg(s.bm25 order by s.bm25 desc, s.chunk_id),
               array_agg(s.covered order by s.bm25 desc, s.chunk_id)
        into lexical_ids, lexical_scores, lexical_covered
        from (select l.chunk_id, l.bm25 + coalesce(m.bm25, 0) as bm25, l.covered + coalesce(m.covered, 0) as covered
              from unnest(lexical_ids, lexical_scores, lexical_covered) l (chunk_id, bm25, covered)
              left join match_terms_of(lexical_ids, ids[first + 1:], weights[first + 1:], base, slope) m
                     on m.chunk_id = l.chunk_id) s;
    end if;
    if mode <> 'lexical' then
        perform set_config('hnsw.ef_search', least(1000, greatest(100, width))::text, true),
                set_config('hnsw.iterative_scan', 'relaxed_order', true);
        execute format(
            'select array_agg(n.chunk_id), array_agg(n.cosine), count(*) from (
                 select e.chunk_id, -(e.embedding::halfvec(%1$s) <#> $1::halfvec(%1$s)) as cosine
                 from %2$I e
                 where e.space = %3$L
                 order by e.embedding::halfvec(%1$s) <#> $1::halfvec(%1$s)
                 limit $2) n', c.dimensions, c.partition, c.embedding_space)
        into dense_ids, cosines, fetched using question_vector, width;
    end if;
    with dense as materialized (
        select n.chunk_id, n.cosine
        from unnest(dense_ids, cosines) n (chunk_id, cosine)
        cross join lateral is_live(n.chunk_id, at) h
        where h.is_live
        order by n.cosine desc, n.chunk_id
        limit depth
    ), lexical as materialized (
        select l.chunk_id, l.bm25, l.covered
        from unnest(lexical_ids[:depth], lexical_scores[:depth], lexical_covered[:depth]) l (chunk_id, bm25, covered)
    ), others as materialized (
        select m.chunk_id, m.bm25, m.covered
        from match_terms_of((select array_agg(d.chunk_id) from dense d where d.chunk_id <> all (coalesce(lexical_ids[:depth], '{}'))),
                            ids, weights, base, slope) m
    )
    select array_agg((coalesce(l.chunk_id, d.chunk_id), coalesce(l.bm25, o.bm25, 0), coalesce(l.covered, o.covered, 0),
                      coalesce(d.cosine, x.cosine), 0, 0, 0, 0)::found_chunk),
           is_short or mode <> 'lexical' and fetched = width and (select count(*) from dense) < depth
    into pool, is_short
    from lexical l
    full join dense d on d.chunk_id = l.chunk_id
    left join others o on o.chunk_id = d.chunk_id and l.chunk_id is null
    left join lateral (
        select -(e.embedding <#> question_vector) as cosine from vectors e
        where e.collection_id = c.id and e.space = c.embedding_space and e.chunk_id = l.chunk_id and d.chunk_id is null
          and mode <> 'lexical'
    ) x on true;
end $$;

-- What `search_passages` of the package calls: scores, and where each chunk stands in the version that is meant.
create function search_passages(
    wanted_tenant text, wanted_collection text, wanted_space text, question text, exact_terms text[], phrases text[],
    question_vector halfvec, k integer, depth integer, as_of timestamptz, known timestamptz, filter jsonpath, mode text,
    default_weight double precision, with_tokens boolean
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
    select f.chunk_id, d.id::text, d.external_id, v.number, v.title, h.text, h.context, m.span_start, m.span_end, m.paragraph,
           m.heading_path, m.page, v.source, nullif(v.valid_from, '-infinity'), nullif(v.valid_to, 'infinity'), d.metadata,
           f.bm25, f.covered, f.cosine, f.bm25_norm, f.cosine_norm, f.exact, f.score, e.tokens
    from search_chunks(c, question, exact_terms, phrases, question_vector, k, depth, at, known, filter, mode,
                       default_weight) f
    join chunks h on h.id = f.chunk_id
    join documents d on d.id = h.document_id
    cross join lateral (
        select w.* from versions w
        where w.document_id = d.id and w.valid_from <= at
          and case when known is null then w.superseded_at is null
                   else w.recorded_at <= known and known < coalesce(w.superseded_at, 'infinity') end
        order by w.valid_from desc, w.id desc
        limit 1
    ) v
    cross join lateral (
        select o.* from version_chunks o where o.version_id = v.id and o.chunk_id = f.chunk_id order by o.ordinal limit 1
    ) m
    left join lateral (
        select o.tokens from vectors o
        where with_tokens and o.collection_id = c.id and o.space = c.embedding_space and o.chunk_id = f.chunk_id
    ) e on true
    order by f.score desc, f.chunk_id;
end $$;
