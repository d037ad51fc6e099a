-- A chunk carries its text, and a posting its length: a search reads a few rows by key and no document as a whole.
-- The lexemes of a chunk are made by the configuration of its document's language.

alter table collections
    alter column language drop not null,                       -- null: detected for each document
    alter column language drop default,
    alter column dense_weight drop not null,                   -- null: the default of the code; else learnt from questions
    alter column dense_weight drop default,
    add column languages regconfig[] not null default '{}',    -- those in use: questions are read in each of them
    add column rerank_weight real check (rerank_weight between 0 and 1),
    add column learned jsonb not null default '{}';            -- where the learnt values come from: set, figures, date
update collections set languages = array[language], dense_weight = nullif(dense_weight, 0.8::real);

alter table versions
    add column language regconfig,
    add column is_end boolean not null default false;          -- from valid_from on there is no such document: it was retired
update versions v set language = c.language
from documents d join collections c on c.id = d.collection_id where d.id = v.document_id;

alter table chunks
    add column context text not null default '',               -- title and headings: searched, never cited
    add column text text not null default '',
    add column language regconfig;
update chunks c
set text = m.text, language = m.language
from (select distinct on (h.chunk_id) h.chunk_id, substr(v.text, h.span_start + 1, h.span_end - h.span_start) as text, v.language
      from version_chunks h join versions v on v.id = h.version_id order by h.chunk_id, h.version_id) m
where m.chunk_id = c.id;

alter table vectors add column tokens bytea;                   -- packed token vectors, for MaxSim
alter table vectors_shared alter column tokens set storage external;

alter table postings add column length integer;                -- of the chunk, in lexemes with repetitions
update postings p set length = c.term_count from chunks c where c.id = p.chunk_id;
alter table postings alter column length set not null;
alter table postings drop constraint postings_pkey;
alter table postings add primary key (term_id, chunk_id) include (frequency, length, tenant_id);
-- Read by index alone, which needs its pages marked all-visible: vacuum after a fifth of that is usual.
alter table postings set (autovacuum_vacuum_insert_scale_factor = 0.05, autovacuum_vacuum_scale_factor = 0.05);
alter table terms add column max_frequency integer not null default 2147483647;  -- upper bound, for the bound on a term's score

alter table documents add column renamed_from text[] not null default '{}';      -- external ids that it had before
-- No GIN on metadata: `@@` is not leakproof, so no plan under row level security may use one.
