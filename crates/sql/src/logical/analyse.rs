//! Gives a planned query Spark's types: literals, implicit casts, casts. It runs before DataFusion's own type coercion, which then finds
//! nothing left to do.

use std::collections::HashMap;
use std::sync::Arc;

use datafusion::arrow::datatypes::{DataType, FieldRef};
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{DFSchema, Result, ScalarValue, plan_err};
use datafusion::logical_expr::expr::{Alias, HigherOrderFunction, InList, Lambda, LambdaVariable, ScalarFunction};
use datafusion::logical_expr::expr_rewriter::NamePreserver;
use datafusion::logical_expr::type_coercion::functions::{fields_with_udf, value_fields_with_higher_order_udf};
use datafusion::logical_expr::utils::merge_schema;
use datafusion::logical_expr::{
    Aggregate, Between, BinaryExpr, Case, Expr, ExprSchemable, GroupingSet, LambdaParametersProgress, Like,
    LogicalPlan, LogicalPlanBuilder, Operator, Projection, Union, ValueOrLambda,
};

use crate::ast::CAST_OPERAND;
use crate::functions::cast::cast_to;
use crate::functions::intervals;
use crate::functions::keys::GroupingKey;
use crate::functions::negate;
use crate::functions::types::{common, common_of, is_decimal, is_float, is_string, mismatch, sql_name};

/// Functions of DataFusion whose arguments must have one type.
const OF_ONE_TYPE: &[&str] = &["coalesce", "nullif", "nvl", "greatest", "least"];
/// Those of them that have the greatest or the least value.
const EXTREMES: &[&str] = &["greatest", "least"];
/// Functions where an integer literal beside a DECIMAL has just as many digits as it is written with.
const DECIMAL_ARITHMETIC: &[&str] = &[
    "add",
    "subtract",
    "multiply",
    "divide",
    "div",
    "remainder",
    "pmod",
    "try_add",
    "try_subtract",
    "try_multiply",
    "try_divide",
    "try_mod",
];

/// A planned query with Spark's types.
pub(crate) fn plan(plan: LogicalPlan) -> Result<LogicalPlan> {
    plan.transform_up_with_subqueries(|node| {
        match node {
            // The rows of LIMIT are counted in BIGINT.
            LogicalPlan::Limit(_) => return Ok(Transformed::no(node)),
            LogicalPlan::Union(union) => return Ok(Transformed::yes(same_columns(union)?)),
            LogicalPlan::Values(values) => {
                let schema = DFSchema::empty();
                let rows = values
                    .values
                    .into_iter()
                    .map(|row| row.into_iter().map(|value| expression(value, &schema)).collect::<Result<Vec<_>>>())
                    .collect::<Result<Vec<_>>>()?;
                return Ok(Transformed::yes(same_types(rows)?));
            }
            _ => {}
        }
        let schema = merge_schema(&node.inputs());
        let names = NamePreserver::new(&node);
        let rewritten = node.map_expressions(|expr| {
            keeping_names(&names, expr, &mut |expr| expression(expr, &schema)).map(Transformed::yes)
        })?;
        // Schemas follow the types of their inputs, also where no expression changed.
        rewritten.map_data(|node| match node {
            LogicalPlan::Aggregate(aggregate) => Ok(LogicalPlan::Aggregate(of_keys(aggregate)?)),
            node => node.recompute_schema(),
        })
    })
    .map(|transformed| transformed.data)
}

/// An aggregate in which the arguments of `grouping()` are keys again, whose names were kept.
fn of_keys(aggregate: Aggregate) -> Result<Aggregate> {
    let Aggregate { input, group_expr, mut aggr_expr, .. } = aggregate;
    if let [Expr::GroupingSet(set)] = group_expr.as_slice() {
        let keys = set.distinct_expr();
        let key_of = |argument: Expr| {
            let key = keys.iter().find(|key| matches!(key, Expr::Alias(alias) if *alias.expr == argument));
            key.map_or(argument, |key| (*key).clone())
        };
        let replaced = |expr: Expr| {
            expr.transform_up(|inner| match inner {
                Expr::AggregateFunction(mut call) if call.func.name() == "grouping" => {
                    call.params.args = call.params.args.into_iter().map(key_of).collect();
                    Ok(Transformed::yes(Expr::AggregateFunction(call)))
                }
                other => Ok(Transformed::no(other)),
            })
        };
        aggr_expr = aggr_expr.into_iter().map(|expr| Ok(replaced(expr)?.data)).collect::<Result<_>>()?;
    }
    Aggregate::try_new(input, group_expr, aggr_expr)
}

/// Rewrites an expression of a node and keeps its name; in grouping sets each key keeps its own.
pub(crate) fn keeping_names(
    names: &NamePreserver,
    expr: Expr,
    rewrite: &mut dyn FnMut(Expr) -> Result<Expr>,
) -> Result<Expr> {
    let mut rewrite = |expr: Expr| {
        let name = names.save(&expr);
        Ok(name.restore(rewrite(expr)?))
    };
    let Expr::GroupingSet(set) = expr else { return rewrite(expr) };
    let mut all = |keys: Vec<Expr>| keys.into_iter().map(&mut rewrite).collect::<Result<Vec<_>>>();
    Ok(Expr::GroupingSet(match set {
        GroupingSet::Rollup(keys) => GroupingSet::Rollup(all(keys)?),
        GroupingSet::Cube(keys) => GroupingSet::Cube(all(keys)?),
        GroupingSet::GroupingSets(sets) => GroupingSet::GroupingSets(sets.into_iter().map(all).collect::<Result<_>>()?),
    }))
}

/// An expression over the columns of a schema, with Spark's types.
pub(crate) fn expression(expr: Expr, schema: &DFSchema) -> Result<Expr> {
    Analysis { schema }.visit(expr, &HashMap::new())
}

/// The branches of a union get the common types of their columns.
fn same_columns(union: Union) -> Result<LogicalPlan> {
    let columns = union.schema.fields().len();
    let mut types = Vec::with_capacity(columns);
    for column in 0..columns {
        let of_branches: Vec<DataType> = union
            .inputs
            .iter()
            .filter_map(|input| input.schema().fields().get(column).map(|field| field.data_type().clone()))
            .collect();
        let Some(common) = common_of(&of_branches) else {
            let names: Vec<String> = of_branches.iter().map(sql_name).collect();
            return Err(crate::error::refused_analysis(
                "INCOMPATIBLE_COLUMN_TYPE",
                format!("column {} of the union is {}: cast the branches to one type", column + 1, names.join(" and ")),
            ));
        };
        types.push(common);
    }
    let inputs = union
        .inputs
        .into_iter()
        .map(|input| {
            let fits = input.schema().fields().iter().zip(&types).all(|(field, wanted)| field.data_type() == wanted);
            if fits || input.schema().fields().len() != columns {
                return Ok(input);
            }
            let casts = input
                .schema()
                .iter()
                .zip(&types)
                .map(|((table, field), wanted)| {
                    let column = Expr::Column((table, field).into());
                    if field.data_type() == wanted {
                        return Ok(column);
                    }
                    Ok(cast_to(column, field.data_type(), wanted, false)?.alias_qualified(table.cloned(), field.name()))
                })
                .collect::<Result<_>>()?;
            Ok(Arc::new(LogicalPlan::Projection(Projection::try_new(casts, input)?)))
        })
        .collect::<Result<_>>()?;
    Ok(LogicalPlan::Union(Union::try_new_with_loose_types(inputs)?))
}

/// The rows of VALUES get the common types of their columns.
fn same_types(mut rows: Vec<Vec<Expr>>) -> Result<LogicalPlan> {
    let schema = DFSchema::empty();
    for column in 0..rows.first().map_or(0, Vec::len) {
        let types = rows.iter().map(|row| row[column].get_type(&schema)).collect::<Result<Vec<_>>>()?;
        let Some(common) = common_of(&types) else {
            return Err(crate::error::refused_analysis(
                "INVALID_INLINE_TABLE.INCOMPATIBLE_TYPES_IN_INLINE_TABLE",
                format!("column {} of VALUES has values of different types", column + 1),
            ));
        };
        for (row, from) in rows.iter_mut().zip(types) {
            let value = std::mem::replace(&mut row[column], Expr::Literal(ScalarValue::Null, None));
            row[column] = cast_to(value, &from, &common, false)?;
        }
    }
    LogicalPlanBuilder::values(rows)?.build()
}

/// The parameters of the lambdas around an expression.
type Scope = HashMap<String, FieldRef>;

struct Analysis<'a> {
    schema: &'a DFSchema,
}

impl Analysis<'_> {
    fn visit(&self, expr: Expr, scope: &Scope) -> Result<Expr> {
        match expr {
            Expr::HigherOrderFunction(call) => self.higher_order(call, scope),
            Expr::LambdaVariable(variable) => match scope.get(&variable.name) {
                Some(field) => Ok(Expr::LambdaVariable(LambdaVariable { field: Some(field.clone()), ..variable })),
                None => Ok(Expr::LambdaVariable(variable)),
            },
            Expr::Literal(ScalarValue::Int64(Some(value)), metadata) => Ok(match i32::try_from(value) {
                Ok(small) => Expr::Literal(ScalarValue::Int32(Some(small)), metadata),
                Err(_) => Expr::Literal(ScalarValue::Int64(Some(value)), metadata),
            }),
            other => {
                let visited = other.map_children(|child| Ok(Transformed::yes(self.visit(child, scope)?)))?.data;
                self.typed(visited)
            }
        }
    }

    fn type_of(&self, expr: &Expr) -> Result<DataType> {
        expr.get_type(self.schema)
    }

    /// Brings an expression to a type.
    fn cast(&self, expr: Expr, to: &DataType) -> Result<Expr> {
        let from = self.type_of(&expr)?;
        cast_to(expr, &from, to, false)
    }

    fn boxed(&self, mut expr: Box<Expr>, to: &DataType) -> Result<Box<Expr>> {
        *expr = self.cast(std::mem::take(&mut *expr), to)?;
        Ok(expr)
    }

    /// An expression whose children have Spark's types.
    fn typed(&self, expr: Expr) -> Result<Expr> {
        Ok(match expr {
            Expr::BinaryExpr(binary) => self.binary(binary)?,
            Expr::Negative(inner) => {
                let data_type = self.type_of(&inner)?;
                if matches!(data_type, DataType::Interval(_) | DataType::Duration(_)) {
                    return Ok(Expr::Negative(inner));
                }
                // A negative literal is one.
                if let Expr::Literal(value, metadata) = inner.as_ref()
                    && let Ok(negated) = value.arithmetic_negate()
                {
                    return Ok(Expr::Literal(negated, metadata.clone()));
                }
                negate::call(*inner)
            }
            Expr::Not(inner) => Expr::Not(self.condition(inner, "NOT")?),
            Expr::Between(Between { expr, negated, low, high }) => {
                let (e, l, h) = (self.type_of(&expr)?, self.type_of(&low)?, self.type_of(&high)?);
                let Some(common) = common_of([&e, &l, &h]) else {
                    return Err(different("BETWEEN", &[e, l, h]));
                };
                Expr::Between(Between {
                    expr: self.boxed(expr, &common)?,
                    negated,
                    low: self.boxed(low, &common)?,
                    high: self.boxed(high, &common)?,
                })
            }
            Expr::InList(InList { expr, list, negated }) => {
                let mut types = vec![self.type_of(&expr)?];
                for item in &list {
                    types.push(self.type_of(item)?);
                }
                let Some(common) = common_of(&types) else {
                    return Err(different("IN", &types));
                };
                let list = list.into_iter().map(|item| self.cast(item, &common)).collect::<Result<_>>()?;
                Expr::InList(InList { expr: self.boxed(expr, &common)?, list, negated })
            }
            Expr::Like(like) => {
                let text = DataType::Utf8;
                Expr::Like(Like {
                    expr: self.boxed(like.expr, &text)?,
                    pattern: self.boxed(like.pattern, &text)?,
                    ..like
                })
            }
            Expr::Case(case) => self.case(case)?,
            Expr::Cast(mut cast) => {
                cast.expr = operand(cast.expr);
                let from = self.type_of(&cast.expr)?;
                match (cast.expr.as_ref(), cast.field.data_type()) {
                    // `2L` is a literal, and counts as one.
                    (Expr::Literal(value, metadata), DataType::Int64) if from.is_integer() => {
                        Expr::Literal(value.cast_to(&DataType::Int64)?, metadata.clone())
                    }
                    (_, to) => cast_to(*cast.expr, &from, to, false)?,
                }
            }
            Expr::TryCast(mut cast) => {
                cast.expr = operand(cast.expr);
                let from = self.type_of(&cast.expr)?;
                cast_to(*cast.expr, &from, cast.field.data_type(), true)?
            }
            Expr::ScalarFunction(call) => self.function(call)?,
            Expr::AggregateFunction(mut call) => {
                if call.func.name() == "approx_distinct" {
                    call.params.args =
                        call.params.args.into_iter().map(|arg| self.countable(arg)).collect::<Result<_>>()?;
                }
                let fields = self.fields(&call.params.args)?;
                if !fields.is_empty() {
                    let coerced = fields_with_udf(&fields, call.func.as_ref())?;
                    call.params.args = self.cast_all(call.params.args, &coerced)?;
                }
                Expr::AggregateFunction(call)
            }
            other => other,
        })
    }

    /// A value as the sketch of `approx_count_distinct` takes it: where it does not know the type, as text.
    fn countable(&self, value: Expr) -> Result<Expr> {
        let data_type = self.type_of(&value)?;
        Ok(match data_type {
            DataType::Float32 | DataType::Float64 => {
                cast_to(GroupingKey::call(value), &data_type, &DataType::Utf8, false)?
            }
            DataType::Decimal128(..) | DataType::Boolean | DataType::List(_) | DataType::Struct(_) => {
                cast_to(value, &data_type, &DataType::Utf8, false)?
            }
            _ => value,
        })
    }

    /// An operand that must be BOOLEAN.
    fn condition(&self, expr: Box<Expr>, of: &str) -> Result<Box<Expr>> {
        match self.type_of(&expr)? {
            DataType::Boolean => Ok(expr),
            data_type if data_type.is_null() || is_string(&data_type) => self.boxed(expr, &DataType::Boolean),
            other => Err(mismatch("UNEXPECTED_INPUT_TYPE", format!("{of} needs a BOOLEAN, not {}", sql_name(&other)))),
        }
    }

    /// The condition of a branch, where text is not read.
    fn branch(&self, expr: Box<Expr>) -> Result<Box<Expr>> {
        let data_type = self.type_of(&expr)?;
        if is_string(&data_type) {
            return Err(mismatch("UNEXPECTED_INPUT_TYPE", "a condition of CASE or if() must be BOOLEAN, not STRING"));
        }
        self.condition(expr, "WHEN")
    }

    fn binary(&self, binary: BinaryExpr) -> Result<Expr> {
        let BinaryExpr { left, op, right } = binary;
        let (l, r) = (self.type_of(&left)?, self.type_of(&right)?);
        let (left, right) = match op {
            Operator::And | Operator::Or => {
                let wrong = [&l, &r].into_iter().find(|t| !matches!(t, DataType::Boolean | DataType::Null));
                if let Some(wrong) = wrong.filter(|wrong| !is_string(wrong)) {
                    let other = if std::ptr::eq(wrong, &l) { &r } else { &l };
                    return Err(mismatch(
                        "BINARY_OP_DIFF_TYPES",
                        format!("{op} needs two BOOLEAN, not {} beside {}", sql_name(wrong), sql_name(other)),
                    ));
                }
                (self.boxed(left, &DataType::Boolean)?, self.boxed(right, &DataType::Boolean)?)
            }
            Operator::Eq
            | Operator::NotEq
            | Operator::Lt
            | Operator::LtEq
            | Operator::Gt
            | Operator::GtEq
            | Operator::IsDistinctFrom
            | Operator::IsNotDistinctFrom => {
                let is_interval = |data_type: &DataType| matches!(data_type, DataType::Interval(_));
                if is_interval(&l) && is_interval(&r) {
                    let (left, right) = (Box::new(intervals::order(*left)), Box::new(intervals::order(*right)));
                    return Ok(Expr::BinaryExpr(BinaryExpr { left, op, right }));
                }
                let Some(common) = common(&l, &r) else {
                    return Err(mismatch(
                        "BINARY_OP_DIFF_TYPES",
                        format!("`{op}` cannot compare {} with {}: cast one of them", sql_name(&l), sql_name(&r)),
                    ));
                };
                let zeros = is_float(&common) && !is_other_than_zero(&left) && !is_other_than_zero(&right);
                let side = |expr: Box<Expr>| -> Result<Box<Expr>> {
                    let expr = self.boxed(expr, &common)?;
                    // 0.0 and -0.0 are equal.
                    Ok(if zeros { Box::new(GroupingKey::call(*expr)) } else { expr })
                };
                (side(left)?, side(right)?)
            }
            Operator::BitwiseAnd | Operator::BitwiseOr | Operator::BitwiseXor => match common(&l, &r) {
                Some(common) if common.is_integer() || common.is_null() => {
                    (self.boxed(left, &common)?, self.boxed(right, &common)?)
                }
                _ => {
                    return Err(mismatch(
                        "BINARY_OP_WRONG_TYPE",
                        format!("`{op}` needs two integers, not {} and {}", sql_name(&l), sql_name(&r)),
                    ));
                }
            },
            _ => (left, right),
        };
        Ok(Expr::BinaryExpr(BinaryExpr { left, op, right }))
    }

    fn case(&self, case: Case) -> Result<Expr> {
        let Case { expr, when_then_expr, else_expr } = case;
        let mut conditions = Vec::with_capacity(when_then_expr.len());
        let mut results = Vec::with_capacity(when_then_expr.len() + 1);
        for (when, then) in when_then_expr {
            conditions.push(when);
            results.push(then);
        }
        let has_else = else_expr.is_some();
        results.extend(else_expr);

        let expr = match expr {
            Some(operand) => {
                let mut types = vec![self.type_of(&operand)?];
                for condition in &conditions {
                    types.push(self.type_of(condition)?);
                }
                let Some(common) = common_of(&types) else { return Err(different("CASE", &types)) };
                conditions =
                    conditions.into_iter().map(|condition| self.boxed(condition, &common)).collect::<Result<_>>()?;
                Some(self.boxed(operand, &common)?)
            }
            None => {
                conditions = conditions.into_iter().map(|condition| self.branch(condition)).collect::<Result<_>>()?;
                None
            }
        };
        let types = results.iter().map(|result| self.type_of(result)).collect::<Result<Vec<_>>>()?;
        let Some(common) = common_of(&types) else { return Err(different("CASE", &types)) };
        let mut results = results.into_iter().map(|result| self.boxed(result, &common)).collect::<Result<Vec<_>>>()?;
        let else_expr = if has_else { results.pop() } else { None };
        let when_then_expr = conditions.into_iter().zip(results).collect();
        Ok(Expr::Case(Case { expr, when_then_expr, else_expr }))
    }

    fn fields(&self, args: &[Expr]) -> Result<Vec<FieldRef>> {
        args.iter().map(|arg| Ok(arg.to_field(self.schema)?.1)).collect()
    }

    fn cast_all(&self, args: Vec<Expr>, to: &[FieldRef]) -> Result<Vec<Expr>> {
        args.into_iter().zip(to).map(|(arg, field)| self.cast(arg, field.data_type())).collect()
    }

    fn function(&self, call: ScalarFunction) -> Result<Expr> {
        let ScalarFunction { func, mut args } = call;
        let name = func.name();
        if OF_ONE_TYPE.contains(&name) {
            let types = args.iter().map(|arg| self.type_of(arg)).collect::<Result<Vec<_>>>()?;
            // Text beside another type is not read here.
            let texts = types.iter().filter(|data_type| is_string(data_type)).count();
            let others = types.iter().filter(|data_type| !is_string(data_type) && !data_type.is_null()).count();
            if EXTREMES.contains(&name) && texts > 0 && others > 0 {
                return Err(different(name, &types));
            }
            if EXTREMES.contains(&name) && args.len() < 2 {
                return Err(crate::error::refused_analysis(
                    "WRONG_NUM_ARGS.WITHOUT_SUGGESTION",
                    format!("{name}() needs at least 2 arguments"),
                ));
            }
            let Some(common) = common_of(&types) else { return Err(different(name, &types)) };
            args = args.into_iter().map(|arg| self.cast(arg, &common)).collect::<Result<_>>()?;
            return Ok(Expr::ScalarFunction(ScalarFunction { func, args }));
        }
        if DECIMAL_ARITHMETIC.contains(&name) && args.len() == 2 {
            let decimal = |arg: &Expr| self.type_of(arg).is_ok_and(|data_type| is_decimal(&data_type));
            if decimal(&args[0]) || decimal(&args[1]) {
                args = args.into_iter().map(exact_literal).collect();
            }
        }
        if args.is_empty() {
            return Ok(Expr::ScalarFunction(ScalarFunction { func, args }));
        }
        if let ("date_add" | "date_sub", [_, days]) = (name, args.as_slice())
            && self.type_of(days)? == DataType::Int64
        {
            return Err(mismatch("UNEXPECTED_INPUT_TYPE", format!("{name}() takes days as INT, not BIGINT")));
        }
        let coerced = fields_with_udf(&self.fields(&args)?, func.as_ref())?;
        args = self.cast_all(args, &coerced)?;
        Ok(Expr::ScalarFunction(ScalarFunction { func, args }))
    }

    /// First the values, then the lambdas with the types that the values give to their parameters.
    fn higher_order(&self, call: HigherOrderFunction, scope: &Scope) -> Result<Expr> {
        let HigherOrderFunction { func, args } = call;
        let args = args
            .into_iter()
            .map(|arg| if matches!(arg, Expr::Lambda(_)) { Ok(arg) } else { self.visit(arg, scope) })
            .collect::<Result<Vec<_>>>()?;
        let fields = args
            .iter()
            .map(|arg| match arg {
                Expr::Lambda(_) => Ok(ValueOrLambda::Lambda(None::<FieldRef>)),
                value => Ok(ValueOrLambda::Value(value.to_field(self.schema)?.1)),
            })
            .collect::<Result<Vec<_>>>()?;
        let fields = value_fields_with_higher_order_udf(&fields, func.as_ref())?;
        let args = args
            .into_iter()
            .zip(&fields)
            .map(|(arg, field)| match field {
                ValueOrLambda::Value(field) => self.cast(arg, field.data_type()),
                ValueOrLambda::Lambda(_) => Ok(arg),
            })
            .collect::<Result<Vec<_>>>()?;
        let LambdaParametersProgress::Complete(parameters) = func.lambda_parameters(0, &fields)? else {
            return plan_err!("{}() does not know the parameters of its lambdas", func.name());
        };
        let mut parameters = parameters.into_iter();
        let args = args
            .into_iter()
            .map(|arg| {
                let Expr::Lambda(Lambda { params, body }) = arg else { return Ok(arg) };
                let Some(types) = parameters.next() else {
                    return plan_err!("{}() has too many lambdas", func.name());
                };
                let mut inner = scope.clone();
                for (name, field) in params.iter().zip(types) {
                    inner.insert(name.clone(), Arc::new(field.as_ref().clone().with_name(name)));
                }
                Ok(Expr::Lambda(Lambda { params, body: Box::new(self.visit(*body, &inner)?) }))
            })
            .collect::<Result<_>>()?;
        Ok(Expr::HigherOrderFunction(HigherOrderFunction { func, args }))
    }
}

/// What is cast, without what told it apart.
fn operand(mut expr: Box<Expr>) -> Box<Expr> {
    if let Expr::ScalarFunction(call) = expr.as_mut()
        && call.func.name() == CAST_OPERAND
        && !call.args.is_empty()
    {
        *expr = call.args.swap_remove(0);
    }
    expr
}

/// A literal that is no zero.
fn is_other_than_zero(expr: &Expr) -> bool {
    match expr {
        Expr::Literal(value, _) => value.cast_to(&DataType::Float64).is_ok_and(|value| match value {
            ScalarValue::Float64(Some(value)) => value != 0.0,
            _ => true,
        }),
        Expr::Alias(Alias { expr, .. }) => is_other_than_zero(expr),
        _ => false,
    }
}

/// An integer literal as a DECIMAL of its own number of digits.
fn exact_literal(expr: Expr) -> Expr {
    let value = match &expr {
        Expr::Literal(ScalarValue::Int8(Some(value)), _) => i64::from(*value),
        Expr::Literal(ScalarValue::Int16(Some(value)), _) => i64::from(*value),
        Expr::Literal(ScalarValue::Int32(Some(value)), _) => i64::from(*value),
        Expr::Literal(ScalarValue::Int64(Some(value)), _) => *value,
        _ => return expr,
    };
    let digits = value.unsigned_abs().to_string().len() as u8;
    Expr::Literal(ScalarValue::Decimal128(Some(i128::from(value)), digits, 0), None)
}

fn different(of: &str, types: &[DataType]) -> datafusion::common::DataFusionError {
    let names: Vec<String> = types.iter().map(sql_name).collect();
    mismatch("DATA_DIFF_TYPES", format!("{of} needs values of one type, not {}: cast them", names.join(", ")))
}
