-- Everything that the extension declares: signatures, rights, settings. A right that was widened shows up here.
\set SHOW_CONTEXT never

SELECT p.oid::regprocedure AS routine, p.prorettype::regtype AS returns, p.prokind AS kind, l.lanname AS language,
    CASE WHEN p.prosecdef THEN 'definer' ELSE 'invoker' END AS rights, p.provolatile AS volatile
FROM pg_proc p JOIN pg_language l ON l.oid = p.prolang
WHERE p.pronamespace = 'pgark'::regnamespace ORDER BY p.oid::regprocedure::text COLLATE "C";

-- Who may execute what, the owner left out.
SELECT p.oid::regprocedure AS routine, string_agg(coalesce(g.rolname, 'PUBLIC'), ' ' ORDER BY g.rolname) AS granted_to
FROM pg_proc p LEFT JOIN LATERAL aclexplode(p.proacl) a ON a.grantee <> p.proowner
LEFT JOIN pg_roles g ON g.oid = a.grantee
WHERE p.pronamespace = 'pgark'::regnamespace AND (a.grantee IS NOT NULL OR p.proacl IS NULL)
GROUP BY p.oid ORDER BY p.oid::regprocedure::text COLLATE "C";

SELECT c.relname, c.relkind, coalesce(g.rolname, 'PUBLIC') AS grantee, string_agg(a.privilege_type, ' ' ORDER BY a.privilege_type) AS rights
FROM pg_class c CROSS JOIN LATERAL aclexplode(coalesce(c.relacl, acldefault(CASE c.relkind WHEN 'S' THEN 's' ELSE 'r' END::"char", c.relowner))) a
LEFT JOIN pg_roles g ON g.oid = a.grantee
WHERE c.relnamespace = 'pgark'::regnamespace AND c.relkind IN ('r', 'v', 'S') AND a.grantee <> c.relowner
GROUP BY c.relname, c.relkind, g.rolname ORDER BY c.relname COLLATE "C", g.rolname;

SELECT coalesce(g.rolname, 'PUBLIC') AS grantee, a.privilege_type FROM pg_namespace n CROSS JOIN LATERAL aclexplode(n.nspacl) a
LEFT JOIN pg_roles g ON g.oid = a.grantee WHERE n.nspname = 'pgark' AND a.grantee <> n.nspowner ORDER BY 1;

SELECT c.relname AS view, a.attname AS column, format_type(a.atttypid, a.atttypmod) AS type
FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0
WHERE c.relnamespace = 'pgark'::regnamespace AND c.relkind = 'v' ORDER BY c.relname COLLATE "C", a.attnum;

SELECT name, setting, unit, context, vartype, min_val, max_val, short_desc FROM pg_settings WHERE name LIKE 'pgark.%' ORDER BY name;

-- Nothing without a comment.
SELECT pg_describe_object(d.classid, d.objid, d.objsubid) AS uncommented
FROM pg_depend d JOIN pg_extension e ON e.oid = d.refobjid AND e.extname = 'pgark'
WHERE d.deptype = 'e' AND d.refclassid = 'pg_extension'::regclass
    AND (d.classid IN ('pg_proc'::regclass, 'pg_namespace'::regclass)
        OR d.classid = 'pg_class'::regclass AND EXISTS (SELECT FROM pg_class c WHERE c.oid = d.objid AND c.relkind IN ('r', 'v')))
    AND coalesce(obj_description(d.objid, d.classid::regclass::name), '') = '' ORDER BY 1;

-- SECURITY DEFINER always with a search_path of its own.
SELECT p.oid::regprocedure AS open_to_hijacking FROM pg_proc p
WHERE p.pronamespace = 'pgark'::regnamespace AND p.prosecdef
    AND NOT coalesce(p.proconfig @> ARRAY['search_path=pg_catalog, pg_temp'], false);

-- What pg_dump saves.
SELECT c.oid::regclass AS saved FROM pg_extension e CROSS JOIN LATERAL unnest(e.extconfig) c(oid) WHERE e.extname = 'pgark' ORDER BY 1;
