//! What only the syntax tree can tell: rewrites before the SQL is planned.
//!
//! - Spark's names are case-insensitive, DataFusion's are not: names are given the spelling of the columns that they mean.
//! - In a `SELECT` that groups by `window(…)`, Spark knows a column `window`. Its references become the same function call, so that
//!   the planner matches them with the grouping expression.
//! - Columns without an alias get Spark's names (`count(1)`, `start`).
//! - Functions and literals that DataFusion has in another form are given that form.

use std::collections::{HashMap, HashSet};
use std::ops::ControlFlow;

use datafusion::arrow::datatypes::{DataType, Fields};
use datafusion::common::DataFusionError;
use datafusion::sql::sqlparser::ast::{
    Expr, Function, FunctionArg, FunctionArgExpr, FunctionArguments, GroupByExpr, Ident, ObjectName, ObjectNamePart,
    OrderByKind, Query, Select, SelectItem, SetExpr, SetOperator, TableFactor, VisitMut, VisitorMut,
    WildcardAdditionalOptions,
};

mod functions;
mod generators;
mod names;
mod tokens;

pub(crate) use tokens::{parse_expression, parse_statements};

use self::functions::{Functions, field_of};
use self::generators::Generators;
use self::names::pretty;
use crate::SourceTable;
use crate::error::{refused, unsupported};

type Flow = ControlFlow<DataFusionError>;

/// Rewrites a query in place.
pub(crate) fn rewrite_query(query: &mut Query, sources: &[SourceTable]) -> Result<(), DataFusionError> {
    let mut names = Names::of_sources(sources);
    finish(query.visit(&mut Declarations { names: &mut names }))?;
    finish(query.visit(&mut Spelling { names: &names }))?;
    finish(query.visit(&mut WindowReferences { names: &names }))?;
    finish(query.visit(&mut ColumnNames { names: &names }))?;
    finish(query.visit(&mut Generators { names: &names }))?;
    finish(query.visit(&mut Functions))
}

/// Rewrites a predicate over columns in place.
pub(crate) fn rewrite_expression(expr: &mut Expr, fields: &Fields) -> Result<(), DataFusionError> {
    let mut names = Names::default();
    names.add_fields(fields);
    finish(expr.visit(&mut Spelling { names: &names }))?;
    finish(expr.visit(&mut Functions))
}

fn finish(flow: Flow) -> Result<(), DataFusionError> {
    match flow {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(error) => Err(error),
    }
}

/// The names that a query can mean, and their spelling.
#[derive(Default)]
struct Names {
    exact: HashSet<String>,
    /// By lower case the spelling that counts: the first one, and sources come first.
    spelling: HashMap<String, String>,
    tables: HashSet<String>,
    /// Tables that have a column `window`.
    with_window: HashSet<String>,
    /// Columns of sources that are maps.
    maps: HashSet<String>,
}

impl Names {
    fn of_sources(sources: &[SourceTable]) -> Self {
        let mut names = Self::default();
        for source in sources {
            names.add_table(&source.name);
            names.add_fields(source.schema.fields());
            if source.schema.fields().iter().any(|field| field.name().eq_ignore_ascii_case("window")) {
                names.with_window.insert(source.name.to_lowercase());
            }
        }
        names
    }

    fn add(&mut self, name: &str) {
        self.exact.insert(name.to_owned());
        self.spelling.entry(name.to_lowercase()).or_insert_with(|| name.to_owned());
    }

    fn add_table(&mut self, name: &str) {
        self.add(name);
        self.tables.insert(name.to_lowercase());
    }

    fn add_fields(&mut self, fields: &Fields) {
        for field in fields {
            self.add(field.name());
            self.add_type(field.data_type());
            if matches!(field.data_type(), DataType::Map(..)) {
                self.maps.insert(field.name().to_lowercase());
            }
        }
    }

    fn add_type(&mut self, data_type: &DataType) {
        match data_type {
            DataType::Struct(fields) => self.add_fields(fields),
            DataType::List(field) | DataType::LargeList(field) | DataType::Map(field, _) => {
                self.add_type(field.data_type());
            }
            _ => {}
        }
    }

    fn spell(&self, ident: &mut Ident) {
        if !self.exact.contains(&ident.value)
            && let Some(spelling) = self.spelling.get(&ident.value.to_lowercase())
        {
            ident.value.clone_from(spelling);
        }
    }

    fn is_map_column(&self, name: &str) -> bool {
        self.maps.contains(&name.to_lowercase())
    }

    fn is_table(&self, ident: &Ident) -> bool {
        self.tables.contains(&ident.value.to_lowercase())
    }
}

/// Collects the names that the query itself declares.
struct Declarations<'a> {
    names: &'a mut Names,
}

impl VisitorMut for Declarations<'_> {
    type Break = DataFusionError;

    fn pre_visit_query(&mut self, query: &mut Query) -> Flow {
        if let Err(error) = refuse_set_operations(&query.body) {
            return ControlFlow::Break(error);
        }
        for cte in query.with.iter().flat_map(|with| &with.cte_tables) {
            self.names.add_table(&cte.alias.name.value);
            cte.alias.columns.iter().for_each(|column| self.names.add(&column.name.value));
            if projects_window(&cte.query) {
                self.names.with_window.insert(cte.alias.name.value.to_lowercase());
            }
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_select(&mut self, select: &mut Select) -> Flow {
        for view in &select.lateral_views {
            view.lateral_col_alias.iter().for_each(|column| self.names.add(&column.value));
            if let Some(name) = view.lateral_view_name.0.last().and_then(ObjectNamePart::as_ident) {
                self.names.add_table(&name.value);
            }
        }
        for item in &select.projection {
            match item {
                SelectItem::ExprWithAlias { alias, .. } => self.names.add(&alias.value),
                SelectItem::ExprWithAliases { aliases, .. } => aliases.iter().for_each(|a| self.names.add(&a.value)),
                _ => {}
            }
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_table_factor(&mut self, table: &mut TableFactor) -> Flow {
        let alias = match table {
            TableFactor::Table { alias, .. } | TableFactor::Derived { alias, .. } => alias.as_ref(),
            _ => None,
        };
        if let Some(alias) = alias {
            self.names.add_table(&alias.name.value);
            alias.columns.iter().for_each(|column| self.names.add(&column.name.value));
        }
        ControlFlow::Continue(())
    }
}

fn refuse_set_operations(body: &SetExpr) -> Result<(), DataFusionError> {
    let SetExpr::SetOperation { op, left, right, .. } = body else { return Ok(()) };
    if *op != SetOperator::Union {
        let name = if *op == SetOperator::Intersect { "INTERSECT" } else { "EXCEPT" };
        return Err(refused(
            "_LEGACY_ERROR_TEMP_3102",
            format!(
                "{name} of streams is not supported: it would need all rows that ever came; filter with WHERE instead"
            ),
        ));
    }
    refuse_set_operations(left)?;
    refuse_set_operations(right)
}

/// Gives every name the spelling of what it means.
struct Spelling<'a> {
    names: &'a Names,
}

impl Spelling<'_> {
    fn spell_options(&self, options: &mut WildcardAdditionalOptions) {
        if let Some(except) = &mut options.opt_except {
            self.names.spell(&mut except.first_element);
            except.additional_elements.iter_mut().for_each(|ident| self.names.spell(ident));
        }
    }
}

impl VisitorMut for Spelling<'_> {
    type Break = DataFusionError;

    fn pre_visit_expr(&mut self, expr: &mut Expr) -> Flow {
        match expr {
            Expr::Identifier(ident) => self.names.spell(ident),
            Expr::CompoundIdentifier(parts) => parts.iter_mut().for_each(|ident| self.names.spell(ident)),
            _ => {}
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_relation(&mut self, relation: &mut ObjectName) -> Flow {
        for part in &mut relation.0 {
            if let ObjectNamePart::Identifier(ident) = part {
                self.names.spell(ident);
            }
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_select(&mut self, select: &mut Select) -> Flow {
        for item in &mut select.projection {
            match item {
                SelectItem::Wildcard(options) | SelectItem::QualifiedWildcard(_, options) => {
                    self.spell_options(options)
                }
                _ => {}
            }
        }
        ControlFlow::Continue(())
    }
}

/// Replaces `window`, `window.start` and `window.end` by the window call of their `SELECT`.
struct WindowReferences<'a> {
    names: &'a Names,
}

impl VisitorMut for WindowReferences<'_> {
    type Break = DataFusionError;

    fn pre_visit_query(&mut self, query: &mut Query) -> Flow {
        let SetExpr::Select(select) = query.body.as_mut() else { return ControlFlow::Continue(()) };
        let call = match self.call_of(select) {
            Ok(call) => call,
            Err(error) => return ControlFlow::Break(error),
        };
        if let (Some(call), Some(order_by)) = (call, &mut query.order_by)
            && let OrderByKind::Expressions(exprs) = &mut order_by.kind
        {
            for expr in exprs {
                replace_references(&mut expr.expr, &call);
            }
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_select(&mut self, select: &mut Select) -> Flow {
        let call = match self.call_of(select) {
            Ok(Some(call)) => call,
            Ok(None) => return ControlFlow::Continue(()),
            Err(error) => return ControlFlow::Break(error),
        };
        for item in &mut select.projection {
            if let SelectItem::UnnamedExpr(expr) | SelectItem::ExprWithAlias { expr, .. } = item
                && is_time_of_own_window(expr)
            {
                return ControlFlow::Break(refused(
                    "MISSING_AGGREGATION",
                    format!("{expr} cannot stand in the SELECT that makes the window: use it in a SELECT around it"),
                ));
            }
            if let SelectItem::UnnamedExpr(expr) = item {
                let name = reference_name(expr);
                replace_references(expr, &call);
                if let Some(name) = name {
                    *item = SelectItem::ExprWithAlias { expr: expr.clone(), alias: Ident::with_quote('`', name) };
                }
            } else if let SelectItem::ExprWithAlias { expr, .. } = item {
                replace_references(expr, &call);
            }
        }
        if let GroupByExpr::Expressions(exprs, _) = &mut select.group_by {
            exprs.iter_mut().for_each(|expr| replace_references(expr, &call));
        }
        if let Some(having) = &mut select.having {
            replace_references(having, &call);
        }
        ControlFlow::Continue(())
    }
}

impl WindowReferences<'_> {
    /// The window call that `window` means in this `SELECT`, if it means one.
    fn call_of(&self, select: &Select) -> Result<Option<Expr>, DataFusionError> {
        let mut calls = Vec::new();
        if let GroupByExpr::Expressions(exprs, _) = &select.group_by {
            exprs.iter().for_each(|expr| window_calls(expr, &mut calls));
        }
        if calls.is_empty() {
            for item in &select.projection {
                if let SelectItem::UnnamedExpr(expr) | SelectItem::ExprWithAlias { expr, .. } = item {
                    window_calls(expr, &mut calls);
                }
            }
        }
        if let Some(call) = calls.iter().find(|call| is_call_of(call, "session_window")) {
            return Err(unsupported(format!(
                "{call}: session windows are not supported yet; use a tumbling or sliding window(…)"
            )));
        }
        calls.dedup();
        match calls.len() {
            1 if !self.has_window_column(select) => Ok(calls.pop()),
            _ => Ok(None),
        }
    }

    fn has_window_column(&self, select: &Select) -> bool {
        select
            .from
            .iter()
            .flat_map(|from| std::iter::once(&from.relation).chain(from.joins.iter().map(|j| &j.relation)))
            .any(|table| match table {
                TableFactor::Table { name, .. } => {
                    self.names.with_window.contains(&name.to_string().replace('`', "").to_lowercase())
                }
                TableFactor::Derived { subquery, .. } => projects_window(subquery),
                _ => false,
            })
    }
}

/// Whether a subquery has a column `window`, as far as its own text shows.
fn projects_window(query: &Query) -> bool {
    let SetExpr::Select(select) = query.body.as_ref() else { return false };
    select.projection.iter().any(|item| match item {
        SelectItem::UnnamedExpr(expr) => reference_name(expr) == Some("window"),
        SelectItem::ExprWithAlias { alias, .. } => alias.value.eq_ignore_ascii_case("window"),
        _ => false,
    })
}

fn is_call_of(expr: &Expr, name: &str) -> bool {
    matches!(expr, Expr::Function(function) if function.over.is_none() && function.name.to_string().eq_ignore_ascii_case(name))
}

/// The `window(…)` and `session_window(…)` calls in an expression.
fn window_calls(expr: &Expr, found: &mut Vec<Expr>) {
    let mut expr = expr.clone();
    struct Calls<'a>(&'a mut Vec<Expr>);
    impl VisitorMut for Calls<'_> {
        type Break = ();
        fn pre_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
            if (is_call_of(expr, "window") || is_call_of(expr, "session_window")) && !self.0.contains(expr) {
                self.0.push(expr.clone());
            }
            ControlFlow::Continue(())
        }
    }
    let _ = expr.visit(&mut Calls(found));
}

/// `window` for `window`, `start` for `window.start`, `end` for `window.end`.
fn reference_name(expr: &Expr) -> Option<&'static str> {
    match expr {
        Expr::Identifier(ident) if ident.value.eq_ignore_ascii_case("window") => Some("window"),
        Expr::CompoundIdentifier(parts) => match parts.as_slice() {
            [window, field] if window.value.eq_ignore_ascii_case("window") => {
                ["start", "end"].into_iter().find(|name| field.value.eq_ignore_ascii_case(name))
            }
            _ => None,
        },
        _ => None,
    }
}

/// `window_time(window)`, which Spark only knows above the aggregate that makes the window.
fn is_time_of_own_window(expr: &Expr) -> bool {
    let Expr::Function(Function { args: FunctionArguments::List(list), .. }) = expr else { return false };
    is_call_of(expr, "window_time")
        && list.args.iter().any(|arg| {
            matches!(arg, FunctionArg::Unnamed(FunctionArgExpr::Expr(arg)) if reference_name(arg) == Some("window"))
        })
}

fn replace_references(expr: &mut Expr, call: &Expr) {
    struct Replace<'a>(&'a Expr);
    impl VisitorMut for Replace<'_> {
        type Break = ();
        fn post_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
            match reference_name(expr) {
                Some("window") => *expr = self.0.clone(),
                Some(field) => *expr = field_of(self.0.clone(), field),
                None => {}
            }
            ControlFlow::Continue(())
        }
    }
    let _ = expr.visit(&mut Replace(call));
}

/// Gives columns without an alias Spark's names.
struct ColumnNames<'a> {
    names: &'a Names,
}

impl VisitorMut for ColumnNames<'_> {
    type Break = DataFusionError;

    fn pre_visit_select(&mut self, select: &mut Select) -> Flow {
        for item in &mut select.projection {
            if let SelectItem::UnnamedExpr(expr) = item
                && let Some(name) = self.name_of(expr)
            {
                *item = SelectItem::ExprWithAlias { expr: expr.clone(), alias: Ident::with_quote('`', name) };
            }
        }
        ControlFlow::Continue(())
    }
}

impl ColumnNames<'_> {
    fn name_of(&self, expr: &Expr) -> Option<String> {
        match expr {
            // The planner gives plain columns their own names.
            Expr::Identifier(_) => None,
            Expr::CompoundIdentifier(parts) if parts.len() == 2 && self.names.is_table(&parts[0]) => None,
            Expr::CompoundIdentifier(parts) => parts.last().map(|ident| ident.value.clone()),
            // Generators name their columns themselves.
            expr if generators::is_generator(expr) => None,
            expr if is_call_of(expr, "window") => Some("window".to_owned()),
            expr => Some(names::cast_column(expr).unwrap_or_else(|| pretty(expr))),
        }
    }
}
