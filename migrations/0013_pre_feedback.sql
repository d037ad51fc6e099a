-- What people said of answers: accepted, rejected, or corrected with the output as it should have been. Append-only: who
-- changes his mind says so again, and the latest word counts.
create table feedback (
    id        bigint generated always as identity primary key,
    tenant    text not null default nullif(current_setting('orchestrator.tenant', true), ''),
    answer_id text not null,
    kind      text not null default 'intent' check (kind = 'intent'),  -- the row of the answer that it is about
    verdict   text not null check (verdict in ('good', 'bad', 'fix')),
    fix       text check ((verdict = 'fix') = (fix is not null)),      -- keeps the contract of the answer
    note      text not null default '' check (length(note) <= 4000),
    at        timestamptz not null default now(),
    foreign key (tenant, answer_id, kind) references answers (tenant, answer_id, kind)
);
create index feedback_answer on feedback (tenant, answer_id, id desc);

create policy tenant_only on feedback
    using (tenant = (select nullif(current_setting('orchestrator.tenant', true), '')))
    with check (tenant = (select nullif(current_setting('orchestrator.tenant', true), '')));
alter table feedback enable row level security, force row level security;

create function refuse_change_of_feedback() returns trigger language plpgsql as $$
begin
    raise exception 'feedback is append-only: % is refused', tg_op using errcode = 'restrict_violation';
end
$$;
create trigger feedback_append_only before update or delete on feedback
    for each row execute function refuse_change_of_feedback();
create trigger feedback_no_truncate before truncate on feedback
    for each statement execute function refuse_change_of_feedback();

-- As in 0004, and what is append-only stays so when the rights are given again.
create or replace function grant_to_application() returns boolean language plpgsql as $$
begin
    begin
        if not exists (select from pg_roles where rolname = 'orchestrator_app') then
            create role orchestrator_app nologin;
        end if;
        if not pg_has_role(current_user, 'orchestrator_app', 'SET') then
            execute format('grant orchestrator_app to %I', current_user);
        end if;
    exception
        when duplicate_object or unique_violation then null;  -- another database of this cluster was faster
        when insufficient_privilege then
            raise notice 'the login % cannot have the role orchestrator_app: the policies then hold for itself', current_user;
            if not exists (select from pg_roles where rolname = 'orchestrator_app') then
                return false;
            end if;
    end;
    grant usage on schema public to orchestrator_app;
    grant select, insert, update, delete on all tables in schema public to orchestrator_app;
    revoke insert, update, delete on schema_migrations, tenants from orchestrator_app;
    revoke update, delete on answers, feedback, behaviour_audit from orchestrator_app;
    grant usage, select on all sequences in schema public to orchestrator_app;
    alter default privileges in schema public grant select, insert, update, delete on tables to orchestrator_app;
    alter default privileges in schema public grant usage, select on sequences to orchestrator_app;
    return true;
end $$;
select grant_to_application();
