-- Folders as the source of truth: a document knows which one states it, and ends when that one no longer does.

alter table documents add column root text;  -- name of the folder that `ingest --sync` took it from; null: of none
create index documents_root on documents (collection_id, root);
