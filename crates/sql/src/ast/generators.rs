//! `explode` and its like, in SELECT and in LATERAL VIEW: each becomes a subquery that unnests one list of structs, whose fields are the
//! generator's columns.

use std::ops::ControlFlow;

use datafusion::common::DataFusionError;
use datafusion::sql::sqlparser::ast::{
    ExceptSelectItem, Expr, Function, FunctionArg, FunctionArgExpr, FunctionArgumentList, FunctionArguments,
    GroupByExpr, Ident, LateralView, ObjectNamePart, OneOrManyWithParens, Query, Select, SelectFlavor, SelectItem,
    SelectItemQualifiedWildcardKind, SetExpr, TableAlias, TableFactor, TableWithJoins, Value, VisitMut, VisitorMut,
    WildcardAdditionalOptions, visit_expressions,
};

use super::functions::{call, with_name};
use super::{Names, is_call_of};
use crate::error::refused_analysis;

/// The column with the list of structs; those of a SELECT are numbered.
const GENERATED: &str = "__generated";

/// Generators: Spark's name, the function that makes the list, and whether a row without elements stays.
const GENERATORS: &[(&str, &str, bool)] = &[
    ("explode", "explode_rows", false),
    ("explode_outer", "explode_rows", true),
    ("posexplode", "posexplode_rows", false),
    ("posexplode_outer", "posexplode_rows", true),
    ("inline", "inline_rows", false),
    ("inline_outer", "inline_rows", true),
    ("stack", "stack_rows", false),
    ("json_tuple", "json_tuple_rows", false),
];

/// The generator that an expression is.
fn generator(expr: &Expr) -> Option<(&'static str, &'static str, bool, &Function)> {
    let Expr::Function(function) = expr else { return None };
    GENERATORS
        .iter()
        .find(|(name, _, _)| is_call_of(expr, name))
        .map(|(name, rows, outer)| (*name, *rows, *outer, function))
}

/// Whether an expression is a generator, which names its columns itself.
pub(super) fn is_generator(expr: &Expr) -> bool {
    generator(expr).is_some()
}

/// Whether there is a generator in an expression, other than in a subquery.
fn has_generator(expr: &Expr) -> bool {
    let is_query = matches!(expr, Expr::Subquery(_) | Expr::InSubquery { .. } | Expr::Exists { .. });
    !is_query
        && visit_expressions(expr, |expr| match is_generator(expr) {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        })
        .is_break()
}

/// Replaces the generators of every SELECT.
pub(super) struct Generators<'a> {
    pub(super) names: &'a Names,
}

impl VisitorMut for Generators<'_> {
    type Break = DataFusionError;

    fn pre_visit_select(&mut self, select: &mut Select) -> ControlFlow<DataFusionError> {
        let conditions = select.selection.iter().chain(&select.having);
        if let Some(condition) = conditions.into_iter().find(|condition| has_generator(condition)) {
            return ControlFlow::Break(refused_analysis(
                "UNSUPPORTED_GENERATOR.OUTSIDE_SELECT",
                format!("{condition}: a generator makes rows: use it in the SELECT of a subquery or in LATERAL VIEW"),
            ));
        }
        match self.lateral_views(select).and_then(|()| self.selected(select)) {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => ControlFlow::Break(error),
        }
    }
}

impl Generators<'_> {
    fn lateral_views(&self, select: &mut Select) -> Result<(), DataFusionError> {
        for view in std::mem::take(&mut select.lateral_views) {
            let LateralView { lateral_view, lateral_view_name, lateral_col_alias, outer } = view;
            let Some((name, rows, own_outer, function)) = generator(&lateral_view) else {
                return Err(refused_analysis(
                    "UNSUPPORTED_GENERATOR",
                    format!("{lateral_view} is no generator: LATERAL VIEW needs explode(), posexplode(), inline(), …"),
                ));
            };
            // `LATERAL VIEW explode(x) e` names the table, `… t AS e` the table and the columns.
            let mut aliases = lateral_col_alias;
            let mut table = lateral_view_name.0.last().and_then(ObjectNamePart::as_ident).cloned();
            let columns = match self.default_columns(name, function) {
                Some(columns) if aliases.is_empty() => columns,
                _ if aliases.is_empty() => {
                    return Err(refused_analysis(
                        "UNSUPPORTED_GENERATOR",
                        format!("name the columns of {lateral_view} with AS"),
                    ));
                }
                _ => std::mem::take(&mut aliases),
            };
            let names = columns.clone();
            let generated = Ident::new(GENERATED);
            let inner = Self::unnested(select.from.clone(), None, function, rows, outer || own_outer, &generated);
            let items = std::iter::once(everything_but(&generated))
                .chain(
                    columns
                        .into_iter()
                        .enumerate()
                        .map(|(at, name)| SelectItem::ExprWithAlias { expr: field_at(at, &generated), alias: name }),
                )
                .collect();
            let alias = table_name(&select.from);
            let outer_select = simple_select(items, vec![derived(inner, None)]);
            select.from = vec![derived(outer_select, alias.clone())];
            stars(select, alias.as_ref(), table.as_ref(), &names);
            if let Some(table) = table.take() {
                unqualify(select, &table);
            }
        }
        Ok(())
    }

    /// Generators one after the other: the rows of each are made out of those of the one before.
    fn selected(&self, select: &mut Select) -> Result<(), DataFusionError> {
        let mut generated = Vec::new();
        while let Some(at) = select.projection.iter().position(|item| item_expr(item).is_some_and(is_generator)) {
            let column = Ident::new(format!("{GENERATED}{}", generated.len()));
            self.unnest_selected(select, at, &column)?;
            generated.push(column);
        }
        for item in &mut select.projection {
            if item_expr(item).is_some_and(has_generator) {
                return Err(refused_analysis(
                    "UNSUPPORTED_GENERATOR.NESTED_IN_EXPRESSIONS",
                    format!("{item}: a generator must stand by itself: use it in a subquery or in LATERAL VIEW"),
                ));
            }
            if let SelectItem::Wildcard(options) | SelectItem::QualifiedWildcard(_, options) = item {
                generated.iter().for_each(|column| add_exception(options, column));
            }
        }
        Ok(())
    }

    fn unnest_selected(&self, select: &mut Select, at: usize, column: &Ident) -> Result<(), DataFusionError> {
        let item = select.projection[at].clone();
        let Some((name, rows, outer, function)) = item_expr(&item).and_then(generator) else { return Ok(()) };
        let columns = match &item {
            SelectItem::ExprWithAlias { alias, .. } => vec![alias.clone()],
            SelectItem::ExprWithAliases { aliases, .. } => aliases.clone(),
            _ => match self.default_columns(name, function) {
                Some(columns) => columns,
                None => {
                    return Err(refused_analysis(
                        "UNSUPPORTED_GENERATOR",
                        format!("name the columns of {name}() with AS (a, b)"),
                    ));
                }
            },
        };
        let alias = table_name(&select.from);
        let from = std::mem::take(&mut select.from);
        let inner = Self::unnested(from, select.selection.take(), function, rows, outer, column);
        select.from = vec![derived(inner, alias)];
        let generated = columns
            .into_iter()
            .enumerate()
            .map(|(at, name)| SelectItem::ExprWithAlias { expr: field_at(at, column), alias: name });
        select.projection.splice(at..=at, generated);
        Ok(())
    }

    /// `SELECT *, unnest(rows(args)) AS __generated FROM … WHERE …`
    fn unnested(
        from: Vec<TableWithJoins>,
        selection: Option<Expr>,
        function: &Function,
        rows: &str,
        outer: bool,
        column: &Ident,
    ) -> Select {
        let list = Expr::Function(with_name(function, rows));
        let unnest = call(if outer { "unnest_outer" } else { "unnest" }, vec![list]);
        let items = vec![
            SelectItem::Wildcard(WildcardAdditionalOptions::default()),
            SelectItem::ExprWithAlias { expr: unnest, alias: column.clone() },
        ];
        Select { selection, ..simple_select(items, from) }
    }

    /// Names of a generator's columns where the query gives none; nothing where the text of the query does not tell.
    fn default_columns(&self, name: &str, function: &Function) -> Option<Vec<Ident>> {
        let args = arguments(function);
        let names = |names: &[&str]| Some(names.iter().map(|name| Ident::new(*name)).collect());
        match name {
            "explode" | "explode_outer" if self.is_map(args.first()?) => names(&["key", "value"]),
            "explode" | "explode_outer" => names(&["col"]),
            "posexplode" | "posexplode_outer" if self.is_map(args.first()?) => names(&["pos", "key", "value"]),
            "posexplode" | "posexplode_outer" => names(&["pos", "col"]),
            "stack" => {
                let Expr::Value(value) = args.first()? else { return None };
                let Value::Number(rows, _) = &value.value else { return None };
                let columns = (args.len() - 1).div_ceil(rows.parse::<usize>().ok()?.max(1));
                Some((0..columns).map(|at| Ident::new(format!("col{at}"))).collect())
            }
            "json_tuple" => Some((0..args.len() - 1).map(|at| Ident::new(format!("c{at}"))).collect()),
            _ => None,
        }
    }

    /// Whether an expression is a map, as far as the text and the sources' schemas show.
    fn is_map(&self, expr: &Expr) -> bool {
        match expr {
            Expr::Identifier(name) => self.names.is_map_column(&name.value),
            Expr::CompoundIdentifier(parts) => parts.last().is_some_and(|name| self.names.is_map_column(&name.value)),
            expr => [
                "map",
                "map_from_arrays",
                "map_from_entries",
                "map_concat",
                "str_to_map",
                "map_filter",
                "transform_keys",
                "transform_values",
                "map_zip_with",
            ]
            .iter()
            .any(|name| is_call_of(expr, name)),
        }
    }
}

fn arguments(function: &Function) -> Vec<&Expr> {
    let FunctionArguments::List(FunctionArgumentList { args, .. }) = &function.args else { return Vec::new() };
    args.iter()
        .filter_map(|arg| match arg {
            FunctionArg::Unnamed(FunctionArgExpr::Expr(expr)) => Some(expr),
            _ => None,
        })
        .collect()
}

fn item_expr(item: &SelectItem) -> Option<&Expr> {
    match item {
        SelectItem::UnnamedExpr(expr)
        | SelectItem::ExprWithAlias { expr, .. }
        | SelectItem::ExprWithAliases { expr, .. } => Some(expr),
        _ => None,
    }
}

/// `field_at(column, at)`
fn field_at(at: usize, column: &Ident) -> Expr {
    let index = Expr::Value(Value::Number(at.to_string(), false).with_empty_span());
    call("field_at", vec![Expr::Identifier(column.clone()), index])
}

fn everything_but(column: &Ident) -> SelectItem {
    let mut options = WildcardAdditionalOptions::default();
    add_exception(&mut options, column);
    SelectItem::Wildcard(options)
}

fn add_exception(options: &mut WildcardAdditionalOptions, column: &Ident) {
    let column = column.clone();
    match &mut options.opt_except {
        Some(except) => except.additional_elements.push(column),
        None => options.opt_except = Some(ExceptSelectItem { first_element: column, additional_elements: Vec::new() }),
    }
}

/// Beside a lateral view with these `columns`, `table.*` is what stood before it, and `view.*` the columns.
fn stars(select: &mut Select, table: Option<&Ident>, view: Option<&Ident>, columns: &[Ident]) {
    let mut items = Vec::with_capacity(select.projection.len());
    for mut item in std::mem::take(&mut select.projection) {
        if let SelectItem::QualifiedWildcard(SelectItemQualifiedWildcardKind::ObjectName(name), options) = &mut item {
            let is =
                |ident: &Ident| name.0.last().and_then(ObjectNamePart::as_ident).is_some_and(|last| same(last, ident));
            if view.is_some_and(is) {
                items.extend(columns.iter().map(|column| SelectItem::UnnamedExpr(Expr::Identifier(column.clone()))));
                continue;
            }
            if table.is_some_and(is) {
                columns.iter().for_each(|column| add_exception(options, column));
            }
        }
        items.push(item);
    }
    select.projection = items;
}

fn same(one: &Ident, other: &Ident) -> bool {
    one.value.eq_ignore_ascii_case(&other.value)
}

fn simple_select(projection: Vec<SelectItem>, from: Vec<TableWithJoins>) -> Select {
    Select { projection, from, group_by: GroupByExpr::Expressions(vec![], vec![]), ..empty_select() }
}

fn empty_select() -> Select {
    Select {
        select_token: datafusion::sql::sqlparser::ast::helpers::attached_token::AttachedToken::empty(),
        optimizer_hints: vec![],
        distinct: None,
        select_modifiers: None,
        top: None,
        top_before_distinct: false,
        projection: vec![],
        exclude: None,
        into: None,
        from: vec![],
        lateral_views: vec![],
        prewhere: None,
        selection: None,
        connect_by: vec![],
        group_by: GroupByExpr::Expressions(vec![], vec![]),
        cluster_by: vec![],
        distribute_by: vec![],
        sort_by: vec![],
        having: None,
        named_window: vec![],
        qualify: None,
        window_before_qualify: false,
        value_table_mode: None,
        flavor: SelectFlavor::Standard,
    }
}

fn derived(select: Select, alias: Option<Ident>) -> TableWithJoins {
    let query = Query {
        with: None,
        body: Box::new(SetExpr::Select(Box::new(select))),
        order_by: None,
        limit_clause: None,
        fetch: None,
        locks: vec![],
        for_clause: None,
        settings: None,
        format_clause: None,
        pipe_operators: vec![],
    };
    let alias = alias.map(|name| TableAlias { explicit: true, name, columns: vec![], at: None });
    TableWithJoins {
        relation: TableFactor::Derived { lateral: false, subquery: Box::new(query), alias, sample: None },
        joins: vec![],
    }
}

/// The name under which the rest of the query knows a FROM of one table.
fn table_name(from: &[TableWithJoins]) -> Option<Ident> {
    let [TableWithJoins { relation, joins }] = from else { return None };
    if !joins.is_empty() {
        return None;
    }
    match relation {
        TableFactor::Table { alias: Some(alias), .. } | TableFactor::Derived { alias: Some(alias), .. } => {
            Some(alias.name.clone())
        }
        TableFactor::Table { name, .. } => name.0.last().and_then(ObjectNamePart::as_ident).cloned(),
        _ => None,
    }
}

/// Columns of a lateral view are plain columns now: `t.e` becomes `e`.
fn unqualify(select: &mut Select, table: &Ident) {
    struct Columns<'a>(&'a Ident);
    impl VisitorMut for Columns<'_> {
        type Break = ();
        fn pre_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
            if let Expr::CompoundIdentifier(parts) = expr
                && parts.len() > 1
                && parts[0].value.eq_ignore_ascii_case(&self.0.value)
            {
                parts.remove(0);
                if let [column] = parts.as_slice() {
                    *expr = Expr::Identifier(column.clone());
                }
            }
            ControlFlow::Continue(())
        }
    }
    let _ = select.visit(&mut Columns(table));
}

/// The parameters of a lambda are no columns.
pub(super) fn lambda_parameters(expr: &Expr) -> Vec<&str> {
    let Expr::Lambda(lambda) = expr else { return Vec::new() };
    match &lambda.params {
        OneOrManyWithParens::One(parameter) => vec![parameter.name.value.as_str()],
        OneOrManyWithParens::Many(parameters) => parameters.iter().map(|p| p.name.value.as_str()).collect(),
    }
}
