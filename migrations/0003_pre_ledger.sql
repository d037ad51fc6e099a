-- Ledger: append-only record of every answer, one hash chain per tenant. An intent row is committed before the first
-- byte of an answer leaves, an outcome row before its end.
create table answers (
    tenant     text not null default 'default',
    seq        bigint not null check (seq > 0),
    answer_id  text not null,
    kind       text not null check (kind in ('intent', 'outcome')),
    at         timestamptz not null,
    payload    text not null,                                  -- canonical JSON: the exact bytes that are hashed
    prev_hash  text not null,
    hash       text not null,
    primary key (tenant, seq),
    unique (tenant, answer_id, kind)
);


create table ledger_heads (
    tenant text primary key,
    seq    bigint not null,
    hash   text not null
);

create function refuse_change() returns trigger language plpgsql as $$
begin
    raise exception 'the ledger is append-only: % is refused', tg_op using errcode = 'restrict_violation';
end
$$;
create trigger answers_append_only before update or delete on answers for each row execute function refuse_change();
create trigger answers_no_truncate before truncate on answers for each statement execute function refuse_change();
