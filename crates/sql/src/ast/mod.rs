//! What only the syntax tree can tell: rewrites before the SQL is planned.
//!
//! - Spark's names are case-insensitive, DataFusion's are not: names are given the spelling of the columns that they mean.
//! - In a `SELECT` that groups by `window(…)`, Spark knows a column `window`. Its references become the same function call, so that
//!   the planner matches them with the grouping expression.
//! - `struct.*` and aliases that are used right in their own `SELECT` become what they stand for.
//! - Columns without an alias get Spark's names (`count(1)`, `start`).
//! - Functions and literals that DataFusion has in another form are given that form.

use std::collections::{HashMap, HashSet};
use std::ops::ControlFlow;

use datafusion::arrow::datatypes::{DataType, Fields};
use datafusion::common::DataFusionError;
use datafusion::sql::sqlparser::ast::{
    Expr, Function, FunctionArg, FunctionArgExpr, FunctionArguments, GroupByExpr, Ident, ObjectName, ObjectNamePart,
    OrderByKind, Query, Select, SelectItem, SelectItemQualifiedWildcardKind, SetExpr, SetOperator, SetQuantifier,
    TableFactor, TableWithJoins, Visit, VisitMut, VisitorMut, WildcardAdditionalOptions, visit_expressions,
    visit_relations,
};

mod ctes;
mod functions;
mod generators;
mod grouping;
mod intervals;
mod joins;
mod names;
mod tokens;

pub(crate) use self::functions::CAST_OPERAND;
pub(crate) use tokens::{parse_expression, parse_statements};

use self::functions::{Functions, access, field_of};
use self::generators::Generators;
use self::grouping::GroupingSets;
use self::joins::Joins;
use self::names::pretty;
use crate::error::{refused, unsupported};
use crate::{SourceTable, TableKind};

type Flow = ControlFlow<DataFusionError>;

/// Rewrites a query in place.
pub(crate) fn rewrite_query(query: &mut Query, sources: &[SourceTable]) -> Result<(), DataFusionError> {
    finish(query.visit(&mut ctes::Shadowed::default()))?;
    let mut names = Names::of_sources(sources);
    finish(query.visit(&mut Declarations { names: &mut names }))?;
    finish(query.visit(&mut StructStars { names: &names }))?;
    finish(query.visit(&mut Spelling { names: &names }))?;
    finish(query.visit(&mut WindowReferences { names: &names }))?;
    finish(query.visit(&mut ColumnNames))?;
    finish(query.visit(&mut LateralAliases { names: &names }))?;
    finish(query.visit(&mut Generators { names: &names }))?;
    finish(query.visit(&mut Joins))?;
    finish(query.visit(&mut GroupingSets))?;
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
    /// Sources that are streams, and what reads them.
    streams: HashSet<String>,
    /// By table in lower case its columns in lower case, as far as the text shows.
    columns: HashMap<String, Columns>,
    /// Columns of sources that are maps.
    maps: HashSet<String>,
    /// By lower case the fields of columns that are structs.
    structs: HashMap<String, Vec<String>>,
}

impl Names {
    fn of_sources(sources: &[SourceTable]) -> Self {
        let mut names = Self::default();
        for source in sources {
            names.add_table(&source.name);
            names.add_fields(source.schema.fields());
            if source.kind == TableKind::Stream {
                names.streams.insert(source.name.to_lowercase());
            }
            let columns = source.schema.fields().iter().map(|field| field.name().to_lowercase()).collect();
            names.columns.insert(source.name.to_lowercase(), Columns { known: columns, all: true });
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
            match field.data_type() {
                DataType::Map(..) => _ = self.maps.insert(field.name().to_lowercase()),
                DataType::Struct(fields) => {
                    let fields = fields.iter().map(|field| field.name().clone()).collect();
                    self.structs.insert(field.name().to_lowercase(), fields);
                }
                _ => {}
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
        for cte in query.with.iter().flat_map(|with| &with.cte_tables) {
            self.names.add_table(&cte.alias.name.value);
            cte.alias.columns.iter().for_each(|column| self.names.add(&column.name.value));
            let columns = match cte.alias.columns.as_slice() {
                [] => self.names.columns_of(&cte.query.body),
                named => {
                    Columns { known: named.iter().map(|column| column.name.value.to_lowercase()).collect(), all: true }
                }
            };
            self.names.columns.insert(cte.alias.name.value.to_lowercase(), columns);
            if self.names.reads_stream(&cte.query) {
                self.names.streams.insert(cte.alias.name.value.to_lowercase());
            }
        }
        match self.names.refuse_set_operations(&query.body) {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => ControlFlow::Break(error),
        }
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
                SelectItem::ExprWithAlias { expr, alias } => {
                    self.names.add(&alias.value);
                    if WINDOWS.iter().any(|name| is_call_of(expr, name) || reference_name(expr, name) == Some(*name)) {
                        self.names.structs.insert(alias.value.to_lowercase(), window_fields());
                    }
                }
                SelectItem::ExprWithAliases { aliases, .. } => aliases.iter().for_each(|a| self.names.add(&a.value)),
                _ => {}
            }
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_table_factor(&mut self, table: &mut TableFactor) -> Flow {
        if let TableFactor::Table { sample: Some(_), .. } | TableFactor::Derived { sample: Some(_), .. } = table {
            return ControlFlow::Break(match self.names.reads_stream(&*table) {
                true => refused(
                    "_LEGACY_ERROR_TEMP_3102",
                    "TABLESAMPLE is not supported on streams: use WHERE on a hash of a column",
                ),
                false => unsupported("TABLESAMPLE is not supported: use WHERE on a hash of a column"),
            });
        }
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

impl Names {
    /// Whether a part of a query names a stream, as far as the text shows.
    fn reads_stream(&self, part: &impl Visit) -> bool {
        visit_relations(part, |relation| {
            match self.streams.contains(&relation.to_string().replace('`', "").to_lowercase()) {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            }
        })
        .is_break()
    }

    fn refuse_set_operations(&self, body: &SetExpr) -> Result<(), DataFusionError> {
        let SetExpr::SetOperation { op, left, right, set_quantifier } = body else { return Ok(()) };
        let (left_stream, right_stream) = (self.reads_stream(left), self.reads_stream(right));
        let is_refused = match op {
            SetOperator::Union => false,
            SetOperator::Intersect => left_stream || right_stream,
            SetOperator::Except | SetOperator::Minus => right_stream,
        };
        if is_refused {
            return Err(refused(
                "_LEGACY_ERROR_TEMP_3102",
                format!(
                    "{op} with a stream is not supported: it would need all rows that ever came; use WHERE or a JOIN"
                ),
            ));
        }
        let all = matches!(set_quantifier, SetQuantifier::All | SetQuantifier::AllByName);
        if *op != SetOperator::Union && left_stream && all {
            return Err(unsupported(format!("{op} ALL with a stream is not supported: leave ALL out, or use WHERE")));
        }
        self.refuse_set_operations(left)?;
        self.refuse_set_operations(right)
    }
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

/// Functions whose calls Spark knows as a column of their name, in the `SELECT` that groups by them.
const WINDOWS: &[&str] = &["window", "session_window"];

/// Replaces `window`, `window.start` and `window.end` by the window call of their `SELECT`, and the same of `session_window`.
struct WindowReferences<'a> {
    names: &'a Names,
}

/// A call of one of [`WINDOWS`].
struct WindowCall {
    call: Expr,
    column: &'static str,
}

impl VisitorMut for WindowReferences<'_> {
    type Break = DataFusionError;

    fn pre_visit_query(&mut self, query: &mut Query) -> Flow {
        let SetExpr::Select(select) = query.body.as_mut() else { return ControlFlow::Continue(()) };
        if let (Some(window), Some(order_by)) = (self.call_of(select), &mut query.order_by)
            && let OrderByKind::Expressions(exprs) = &mut order_by.kind
        {
            for expr in exprs {
                window.replace_references(&mut expr.expr);
            }
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_select(&mut self, select: &mut Select) -> Flow {
        if let Some(time) = time_of_a_key(select) {
            return ControlFlow::Break(refused(
                "MISSING_AGGREGATION",
                format!("{time} cannot stand in the SELECT that groups by the window: use it in a SELECT around it"),
            ));
        }
        let Some(window) = self.call_of(select) else { return ControlFlow::Continue(()) };
        for item in &mut select.projection {
            if let SelectItem::UnnamedExpr(expr) = item {
                let name = reference_name(expr, window.column);
                window.replace_references(expr);
                if let Some(name) = name {
                    *item = SelectItem::ExprWithAlias { expr: expr.clone(), alias: Ident::with_quote('`', name) };
                }
            } else if let SelectItem::ExprWithAlias { expr, .. } = item {
                window.replace_references(expr);
            }
        }
        if let GroupByExpr::Expressions(exprs, _) = &mut select.group_by {
            exprs.iter_mut().for_each(|expr| window.replace_references(expr));
        }
        if let Some(having) = &mut select.having {
            window.replace_references(having);
        }
        ControlFlow::Continue(())
    }
}

impl WindowReferences<'_> {
    /// The window call whose column this `SELECT` knows, if there is one.
    fn call_of(&self, select: &Select) -> Option<WindowCall> {
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
        calls.dedup();
        let (Some(call), true) = (calls.pop(), calls.is_empty()) else { return None };
        let column = WINDOWS.iter().find(|name| is_call_of(&call, name))?;
        // A column of that name that is there anyway comes first.
        (!self.names.columns_read(select).known.contains(*column)).then_some(WindowCall { call, column })
    }
}

/// Names of columns in lower case.
#[derive(Default, Clone)]
struct Columns {
    known: HashSet<String>,
    /// Whether there are no others.
    all: bool,
}

impl Columns {
    fn add(&mut self, other: Columns) {
        self.known.extend(other.known);
        self.all &= other.all;
    }
}

impl Names {
    /// The columns that a `SELECT` can name, as far as the text shows.
    fn columns_read(&self, select: &Select) -> Columns {
        let mut columns = Columns { known: HashSet::new(), all: true };
        for from in &select.from {
            for table in std::iter::once(&from.relation).chain(from.joins.iter().map(|join| &join.relation)) {
                columns.add(self.columns_of_table(table));
            }
        }
        for view in &select.lateral_views {
            columns.all &= !view.lateral_col_alias.is_empty();
            columns.known.extend(view.lateral_col_alias.iter().map(|column| column.value.to_lowercase()));
        }
        columns
    }

    fn columns_of_table(&self, table: &TableFactor) -> Columns {
        let (TableFactor::Table { alias, .. } | TableFactor::Derived { alias, .. }) = table else {
            return Columns::default();
        };
        if let Some(alias) = alias.as_ref().filter(|alias| !alias.columns.is_empty()) {
            let known = alias.columns.iter().map(|column| column.name.value.to_lowercase()).collect();
            return Columns { known, all: true };
        }
        match table {
            TableFactor::Table { name, .. } => {
                let name = name.to_string().replace('`', "").to_lowercase();
                self.columns.get(&name).cloned().unwrap_or_default()
            }
            TableFactor::Derived { subquery, .. } => self.columns_of(&subquery.body),
            _ => Columns::default(),
        }
    }

    /// The columns of a subquery, as far as the text shows.
    fn columns_of(&self, body: &SetExpr) -> Columns {
        match body {
            SetExpr::Select(select) => {
                let mut columns = Columns { known: HashSet::new(), all: true };
                for item in &select.projection {
                    match item {
                        SelectItem::UnnamedExpr(expr) => {
                            let window =
                                WINDOWS.iter().find(|name| is_call_of(expr, name)).map(|name| (*name).to_owned());
                            columns.all &= !generators::is_generator(expr);
                            columns.known.extend(window.or_else(|| last_name(expr)));
                        }
                        SelectItem::ExprWithAlias { alias, .. } => {
                            columns.known.insert(alias.value.to_lowercase());
                        }
                        SelectItem::ExprWithAliases { aliases, .. } => {
                            columns.known.extend(aliases.iter().map(|alias| alias.value.to_lowercase()));
                        }
                        SelectItem::Wildcard(_) | SelectItem::QualifiedWildcard(..) => {
                            columns.add(self.columns_read(select));
                        }
                    }
                }
                columns
            }
            SetExpr::Query(query) => self.columns_of(&query.body),
            SetExpr::SetOperation { left, .. } => self.columns_of(left),
            _ => Columns::default(),
        }
    }
}

/// The fields of a window.
fn window_fields() -> Vec<String> {
    ["start", "end"].map(str::to_owned).to_vec()
}

/// `struct.*` becomes the struct's fields.
struct StructStars<'a> {
    names: &'a Names,
}

impl VisitorMut for StructStars<'_> {
    type Break = DataFusionError;

    fn pre_visit_select(&mut self, select: &mut Select) -> Flow {
        let mut items = Vec::with_capacity(select.projection.len());
        for item in std::mem::take(&mut select.projection) {
            match self.fields(&item) {
                Some((of, fields)) => items.extend(fields.iter().map(|field| SelectItem::ExprWithAlias {
                    expr: field_of(of.clone(), field),
                    alias: Ident::with_quote('`', field.clone()),
                })),
                None => items.push(item),
            }
        }
        select.projection = items;
        ControlFlow::Continue(())
    }
}

impl StructStars<'_> {
    /// The struct before a star, and its fields.
    fn fields(&self, item: &SelectItem) -> Option<(Expr, &Vec<String>)> {
        let SelectItem::QualifiedWildcard(SelectItemQualifiedWildcardKind::ObjectName(name), _) = item else {
            return None;
        };
        let parts: Vec<Ident> = name.0.iter().map(|part| part.as_ident().cloned()).collect::<Option<_>>()?;
        let last = parts.last()?;
        if parts.len() == 1 && self.names.is_table(last) {
            return None;
        }
        let fields = self.names.structs.get(&last.value.to_lowercase())?;
        let of = match parts.as_slice() {
            [column] => Expr::Identifier(column.clone()),
            _ => Expr::CompoundIdentifier(parts),
        };
        Some((of, fields))
    }
}

/// An expression of a `SELECT` can use the aliases of those before it, unless there is a column of that name.
struct LateralAliases<'a> {
    names: &'a Names,
}

impl VisitorMut for LateralAliases<'_> {
    type Break = DataFusionError;

    fn pre_visit_select(&mut self, select: &mut Select) -> Flow {
        let columns = self.names.columns_read(select);
        if !columns.all {
            return ControlFlow::Continue(());
        }
        let mut aliases = Aliases { depth: 0, known: HashMap::new() };
        for item in &mut select.projection {
            match item {
                SelectItem::UnnamedExpr(expr) => _ = expr.visit(&mut aliases),
                SelectItem::ExprWithAlias { expr, alias } => {
                    _ = expr.visit(&mut aliases);
                    let name = alias.value.to_lowercase();
                    if !columns.known.contains(&name) && !generators::is_generator(expr) {
                        aliases.known.insert(name, expr.clone());
                    }
                }
                _ => {}
            }
        }
        ControlFlow::Continue(())
    }
}

/// Replaces names by the expressions that they stand for; in a subquery they mean its own columns.
struct Aliases {
    depth: usize,
    known: HashMap<String, Expr>,
}

impl VisitorMut for Aliases {
    type Break = ();

    fn pre_visit_query(&mut self, _: &mut Query) -> ControlFlow<()> {
        self.depth += 1;
        ControlFlow::Continue(())
    }

    fn post_visit_query(&mut self, _: &mut Query) -> ControlFlow<()> {
        self.depth -= 1;
        ControlFlow::Continue(())
    }

    fn pre_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
        // What stands behind a dot is a field, whatever is called so.
        if let Some(call) = access(expr) {
            *expr = call;
        }
        ControlFlow::Continue(())
    }

    fn post_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
        if self.depth == 0
            && let Expr::Identifier(name) = expr
            && let Some(meant) = self.known.get(&name.value.to_lowercase())
        {
            *expr = match meant {
                plain @ (Expr::Identifier(_) | Expr::CompoundIdentifier(_) | Expr::Function(_)) => plain.clone(),
                other => Expr::Nested(Box::new(other.clone())),
            };
        }
        ControlFlow::Continue(())
    }
}

/// The name of the column that an expression without an alias gives: `b` for `a.b`.
fn last_name(expr: &Expr) -> Option<String> {
    match expr {
        Expr::Identifier(ident) => Some(ident.value.to_lowercase()),
        Expr::CompoundIdentifier(parts) => parts.last().map(|ident| ident.value.to_lowercase()),
        _ => None,
    }
}

fn is_call_of(expr: &Expr, name: &str) -> bool {
    matches!(expr, Expr::Function(function) if function.over.is_none() && function.name.to_string().eq_ignore_ascii_case(name))
}

/// The calls of [`WINDOWS`] in an expression.
fn window_calls(expr: &Expr, found: &mut Vec<Expr>) {
    let _: ControlFlow<()> = visit_expressions(expr, |expr| {
        if WINDOWS.iter().any(|name| is_call_of(expr, name)) && !found.contains(expr) {
            found.push(expr.clone());
        }
        ControlFlow::Continue(())
    });
}

/// For a column `window`: `window` for `window`, `start` for `window.start`, `end` for `window.end`.
fn reference_name(expr: &Expr, column: &'static str) -> Option<&'static str> {
    match expr {
        Expr::Identifier(ident) if ident.value.eq_ignore_ascii_case(column) => Some(column),
        Expr::CompoundIdentifier(parts) => match parts.as_slice() {
            [window, field] if window.value.eq_ignore_ascii_case(column) => {
                ["start", "end"].into_iter().find(|name| field.value.eq_ignore_ascii_case(name))
            }
            _ => None,
        },
        _ => None,
    }
}

/// A `window_time(window)` of a window that the `SELECT` groups by: Spark only knows it above the aggregate.
fn time_of_a_key(select: &Select) -> Option<&Expr> {
    let GroupByExpr::Expressions(keys, _) = &select.group_by else { return None };
    let is_key = |of: &Expr| {
        keys.contains(of)
            || keys.iter().any(|key| WINDOWS.iter().any(|n| is_call_of(key, n) && reference_name(of, n) == Some(*n)))
    };
    let times = select.projection.iter().filter_map(|item| match item {
        SelectItem::UnnamedExpr(expr) | SelectItem::ExprWithAlias { expr, .. } => Some(expr),
        _ => None,
    });
    times.filter(|time| is_call_of(time, "window_time") && !keys.contains(time)).find(|time| {
        let Expr::Function(Function { args: FunctionArguments::List(list), .. }) = time else { return false };
        list.args.iter().any(|arg| matches!(arg, FunctionArg::Unnamed(FunctionArgExpr::Expr(of)) if is_key(of)))
    })
}

impl WindowCall {
    fn replace_references(&self, expr: &mut Expr) {
        struct Replace<'a>(&'a WindowCall);
        impl VisitorMut for Replace<'_> {
            type Break = ();
            fn post_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
                let WindowCall { call, column } = self.0;
                match reference_name(expr, column) {
                    Some(name) if name == *column => *expr = call.clone(),
                    Some(field) => *expr = field_of(call.clone(), field),
                    None => {}
                }
                ControlFlow::Continue(())
            }
        }
        let _ = expr.visit(&mut Replace(self));
    }
}

/// Gives columns without an alias Spark's names.
struct ColumnNames;

impl VisitorMut for ColumnNames {
    type Break = DataFusionError;

    fn pre_visit_select(&mut self, select: &mut Select) -> Flow {
        let tables = tables_of(select);
        for item in &mut select.projection {
            if let SelectItem::UnnamedExpr(expr) = item
                && let Some(name) = Self::name_of(expr, &tables)
            {
                *item = SelectItem::ExprWithAlias { expr: expr.clone(), alias: Ident::with_quote('`', name) };
            }
        }
        ControlFlow::Continue(())
    }
}

/// The names of the tables of a `SELECT`, in lower case.
fn tables_of(select: &Select) -> HashSet<String> {
    fn add(table: &TableFactor, found: &mut HashSet<String>) {
        match table {
            TableFactor::NestedJoin { table_with_joins, alias: None } => add_all(table_with_joins, found),
            TableFactor::Table { alias: Some(alias), .. }
            | TableFactor::Derived { alias: Some(alias), .. }
            | TableFactor::NestedJoin { alias: Some(alias), .. }
            | TableFactor::TableFunction { alias: Some(alias), .. }
            | TableFactor::Function { alias: Some(alias), .. } => _ = found.insert(alias.name.value.to_lowercase()),
            TableFactor::Table { name, .. } => {
                found.extend(name.0.last().and_then(ObjectNamePart::as_ident).map(|name| name.value.to_lowercase()));
            }
            _ => {}
        }
    }
    fn add_all(tables: &TableWithJoins, found: &mut HashSet<String>) {
        add(&tables.relation, found);
        tables.joins.iter().for_each(|join| add(&join.relation, found));
    }
    let mut found = HashSet::new();
    select.from.iter().for_each(|tables| add_all(tables, &mut found));
    let views = select.lateral_views.iter().filter_map(|view| view.lateral_view_name.0.last()?.as_ident());
    found.extend(views.map(|name| name.value.to_lowercase()));
    found
}

impl ColumnNames {
    /// The name of a column; `tables` are those of its `SELECT`.
    fn name_of(expr: &Expr, tables: &HashSet<String>) -> Option<String> {
        match expr {
            // The planner gives plain columns their own names.
            Expr::Identifier(_) => None,
            Expr::CompoundIdentifier(parts) if parts.len() == 2 && tables.contains(&parts[0].value.to_lowercase()) => {
                None
            }
            Expr::CompoundIdentifier(parts) => parts.last().map(|ident| ident.value.clone()),
            // Generators name their columns themselves.
            expr if generators::is_generator(expr) => None,
            expr => match WINDOWS.iter().find(|name| is_call_of(expr, name)) {
                Some(name) => Some((*name).to_owned()),
                None => Some(names::cast_column(expr).unwrap_or_else(|| pretty(expr))),
            },
        }
    }
}
