-- Statements for documents in time: versions that end, are restored or withdrawn; what of them is known when.

-- name: find-document
select id, title, deleted_at from documents where collection_id = %(collection_id)s and external_id = %(external_id)s;

-- name: find-version
select id, number, sha256, title, is_end, nullif(valid_from, '-infinity') as valid_from,
       nullif(valid_to, 'infinity') as valid_to, superseded_at
from versions
where document_id = %(document_id)s and number = %(number)s;

-- name: insert-end
-- From valid_from on there is no such document.
insert into versions (document_id, number, sha256, title, source, media_type, text, valid_from, recorded_at, is_end)
select id, (select max(number) + 1 from versions where document_id = d.id), encode(sha256(''), 'hex'), title, '', '', '',
       %(valid_from)s, %(now)s, true
from documents d
where id = %(document_id)s
returning number;

-- name: copy-version
insert into versions (document_id, number, sha256, title, source, media_type, text, notes, valid_from, recorded_at, language)
select v.document_id, (select max(number) + 1 from versions where document_id = v.document_id), v.sha256, v.title, v.source,
       v.media_type, v.text, v.notes, %(now)s, %(now)s, v.language
from versions v
where v.id = %(version_id)s
returning id, number;

-- name: copy-version-chunks
insert into version_chunks (version_id, ordinal, chunk_id, span_start, span_end, paragraph, heading_path, page)
select %(new_id)s, ordinal, chunk_id, span_start, span_end, paragraph, heading_path, page
from version_chunks
where version_id = %(version_id)s;

-- name: count-chunks-without-vector
select count(*) as missing from version_chunks m
where m.version_id = %(version_id)s
  and not exists (select from vectors e where e.collection_id = %(collection_id)s and e.space = %(space)s
                  and e.chunk_id = m.chunk_id);

-- name: describe-document
-- Title and source are those of the last version that has a text; without versions that count it is deleted.
update documents d
set title = coalesce(v.title, d.title), source = coalesce(v.source, d.source), deleted_at = n.deleted_at
from (select case when exists (select from versions where document_id = %(document_id)s and superseded_at is null)
                  then null else %(now)s::timestamptz end as deleted_at) n
left join lateral (
    select title, source from versions
    where document_id = %(document_id)s and superseded_at is null and not is_end
    order by valid_from desc limit 1
) v on true
where d.id = %(document_id)s;

-- name: list-documents
-- `deleted`: those too that were deleted or retired.
select d.id::text as document_id, d.external_id, d.title, d.source, d.metadata, d.deleted_at,
       case when not v.is_end then v.number end as version,
       case when not v.is_end then nullif(v.valid_from, '-infinity') end as valid_from,
       case when not v.is_end then nullif(v.valid_to, 'infinity') end as valid_to,
       (select count(*) from versions a where a.document_id = d.id and not a.is_end
        and case when %(known_at)s::timestamptz is null then a.superseded_at is null
                 else a.recorded_at <= %(known_at)s and %(known_at)s < coalesce(a.superseded_at, 'infinity') end) as versions,
       case when v.is_end then v.valid_from end as retired_at
from documents d
left join lateral version_at(d.id, coalesce(%(as_of)s::timestamptz, now()), %(known_at)s) v on true
where d.collection_id = %(collection_id)s
  and (%(deleted)s
       or not coalesce(v.is_end, false)
          and case when %(as_of)s::timestamptz is null and %(known_at)s::timestamptz is null then d.deleted_at is null
                   else v.id is not null end)
  and (%(after)s::text is null or d.external_id > %(after)s)
order by d.external_id
limit %(limit)s;

-- name: document-history
-- As it was known at `known_at`, or with all that ever was.
select v.number, v.sha256, v.title, v.source, v.media_type, v.notes, nullif(v.valid_from, '-infinity') as valid_from,
       nullif(v.valid_to, 'infinity') as valid_to, v.recorded_at, v.superseded_at, char_length(v.text) as characters,
       (select count(*) from version_chunks m where m.version_id = v.id) as chunks, v.is_end, v.valid_from <= now() as has_begun
from versions v
join documents d on d.id = v.document_id
where d.collection_id = %(collection_id)s and d.external_id = %(external_id)s
  and (%(known_at)s::timestamptz is null
       or v.recorded_at <= %(known_at)s and %(known_at)s < coalesce(v.superseded_at, 'infinity'))
order by v.number;

-- name: version-text
select d.id::text as document_id, d.external_id, v.number, v.title, v.media_type, v.source, v.text,
       nullif(a.valid_from, '-infinity') as valid_from, nullif(a.valid_to, 'infinity') as valid_to, v.superseded_at, v.is_end
from documents d
cross join lateral (
    select w.id, w.valid_from, w.valid_to from versions w where w.document_id = d.id and w.number = %(number)s
    union all
    select o.id, o.valid_from, o.valid_to from version_at(d.id, coalesce(%(as_of)s::timestamptz, now()), %(known_at)s) o
    where %(number)s::integer is null
) a
join versions v on v.id = a.id
where d.collection_id = %(collection_id)s and d.external_id = %(external_id)s;

-- name: renamed-document
select external_id from documents where collection_id = %(collection_id)s and renamed_from @> array[%(external_id)s::text];

-- name: texts-to-compare
select v.number, v.title, v.text from versions v join documents d on d.id = v.document_id
where d.collection_id = %(collection_id)s and d.external_id = %(external_id)s and v.number = any(%(numbers)s);

-- name: citation-changes
-- The paragraph of each citation (what lies between blank lines, 4,000 characters to each side at most), whether it stands in
-- the version that holds now, and else since which version it does not; blanks do not count (`translate` takes a tenth of the
-- time of a regular expression). Texts come once for each cited version.
with cited as (
    select g.place, v.id, v.document_id, v.number, v.valid_from, v.text,
           btrim(reverse((regexp_split_to_array(reverse(right(left(v.text, g.span_start), 4000)), '\n\s*\n'))[1])
                 || substr(v.text, g.span_start + 1, g.span_end - g.span_start)
                 || (regexp_split_to_array(substr(v.text, g.span_end + 1, 4000), '\n\s*\n'))[1], e' \t\n') as paragraph
    from unnest(%(document_ids)s::text[], %(numbers)s::integer[], %(starts)s::integer[], %(ends)s::integer[])
         with ordinality g (document_id, number, span_start, span_end, place)
    join versions v on v.tenant_id = current_tenant() and v.document_id = g.document_id::uuid and v.number = g.number
), chain as (
    -- The versions that count and hold at some time from the cited one's beginning until now.
    select c.place, w.number, w.valid_from, now() < w.valid_to as is_present,
           w.id = c.id or not w.is_end
           and (strpos(w.text, c.paragraph) > 0
                or strpos(translate(w.text, e' \n\t', ''), translate(c.paragraph, e' \n\t', '')) > 0) as holds
    from cited c
    join versions w on w.document_id = c.document_id and w.superseded_at is null and w.valid_from <= now()
                       and (w.valid_to > c.valid_from or w.id = c.id)
), last as (
    select place, max(valid_from) filter (where holds) as held_from, coalesce(bool_or(holds) filter (where is_present), false) as stands
    from chain group by place
), changed as (
    select c.*, coalesce(l.stands, false) as stands, coalesce(l.stands, false) or
           row_number() over (partition by c.id, coalesce(l.stands, false) order by c.place) > 1 as is_told,
           (select h.number from chain h
            where h.place = c.place and not l.stands and (l.held_from is null or h.valid_from > l.held_from)
            order by h.valid_from limit 1) as changed_in
    from cited c left join last l using (place)
)
select c.place::integer as place, c.document_id, c.number, c.paragraph, c.stands, c.changed_in, not c.is_told as is_first,
       case when not c.is_told then c.text end as cited_text, case when not c.is_told then p.text end as present_text
from changed c
left join versions p on p.document_id = c.document_id and p.superseded_at is null and p.valid_from <= now() and now() < p.valid_to
order by c.place;

-- name: synced-documents
-- Every document of the collection; `sha256`: of the text that holds at that time, or will. Ours are those of this root, and
-- those without one that were read from this folder.
select d.external_id, d.root,
       d.root = %(root)s or d.root is null and starts_with(coalesce(v.source, d.source), %(folder)s) as is_ours, v.sha256,
       coalesce(v.source, d.source) as source
from documents d
left join lateral (
    select w.sha256, w.source from versions w
    where w.document_id = d.id and w.superseded_at is null and not w.is_end
      and (coalesce(%(at)s::timestamptz, now()) < w.valid_to
           and (w.valid_from <= coalesce(%(at)s::timestamptz, now()) or %(at)s::timestamptz is null))
    order by w.valid_from limit 1
) v on true
where d.collection_id = %(collection_id)s;

-- name: rename-document
update documents set external_id = %(after)s, renamed_from = renamed_from || external_id
where collection_id = %(collection_id)s and external_id = %(before)s
  and not exists (select from documents where collection_id = %(collection_id)s and external_id = %(after)s);

-- name: claim-documents
update documents set root = %(root)s
where collection_id = %(collection_id)s and external_id = any(%(external_ids)s) and root is null;

-- name: ended-documents
select d.external_id, v.number
from documents d cross join lateral version_at(d.id, coalesce(%(at)s::timestamptz, now()), null) v
where d.collection_id = %(collection_id)s and d.external_id = any(%(external_ids)s) and v.is_end;
