//! Functions and forms that are others in DataFusion.

use std::ops::ControlFlow;

use datafusion::common::DataFusionError;
use datafusion::sql::sqlparser::ast::{
    AccessExpr, BinaryOperator, CaseWhen, CastKind, CeilFloorKind, DataType, ExactNumberInfo, Expr, Function,
    FunctionArg, FunctionArgExpr, FunctionArgumentList, FunctionArguments, Ident, NullTreatment, ObjectName, Subscript,
    TimezoneInfo, TrimWhereField, UnaryOperator, Value, ValueWithSpan, VisitMut, VisitorMut,
    helpers::attached_token::AttachedToken,
};

use super::generators::lambda_parameters;
use super::intervals;
use super::tokens::{LIKE_ALL, LIKE_ANY, UNSIGNED_SHIFT};
use crate::error::refused_analysis;
use crate::functions::cast::read::{date, timestamp};

/// Name of the function around what is cast. To DataFusion two casts of one value have the same name, whatever their types: this tells
/// them apart until the types are known.
pub(crate) const CAST_OPERAND: &str = "cast_operand";

/// Rewrites calls in place.
pub(crate) struct Functions;

impl VisitorMut for Functions {
    type Break = DataFusionError;

    fn post_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<DataFusionError> {
        if let Some(error) = wrong_literal(expr) {
            return ControlFlow::Break(error);
        }
        if let Some(rewritten) = rewrite(expr) {
            *expr = rewritten;
        }
        fields_of_parameters(expr);
        ControlFlow::Continue(())
    }
}

/// In a lambda of `s`, `s.a` is a field of the parameter and no column of a table.
fn fields_of_parameters(lambda: &mut Expr) {
    struct Fields(Vec<String>);
    impl VisitorMut for Fields {
        type Break = ();
        fn post_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
            if let Expr::CompoundIdentifier(parts) = expr
                && let [parameter, fields @ ..] = parts.as_slice()
                && self.0.contains(&parameter.value)
            {
                let parameter = Expr::Identifier(parameter.clone());
                *expr = fields.iter().fold(parameter, |of, field| field_of(of, &field.value));
            }
            ControlFlow::Continue(())
        }
    }
    let parameters = lambda_parameters(lambda).into_iter().map(str::to_owned).collect();
    if let Expr::Lambda(lambda) = lambda {
        let _ = lambda.body.visit(&mut Fields(parameters));
    }
}

/// `DATE'…'` and `TIMESTAMP'…'` of a text that is none.
fn wrong_literal(expr: &Expr) -> Option<DataFusionError> {
    let Expr::TypedString(literal) = expr else { return None };
    let Value::SingleQuotedString(text) = &literal.value.value else { return None };
    let fits = match &literal.data_type {
        DataType::Date => date(text).is_some(),
        DataType::Timestamp(..) | DataType::TimestampNtz(_) => timestamp(text, None).is_some(),
        _ => true,
    };
    (!fits).then(|| refused_analysis("INVALID_TYPED_LITERAL", format!("'{text}' is no {}", literal.data_type)))
}

/// `(struct).field`, `array[index]` and `map[key]` as calls.
pub(super) fn access(expr: &Expr) -> Option<Expr> {
    let Expr::CompoundFieldAccess { root, access_chain } = expr else { return None };
    access_chain.iter().try_fold(root.as_ref().clone(), |inner, access| match access {
        AccessExpr::Dot(Expr::Identifier(field)) => Some(field_of(inner, &field.value)),
        AccessExpr::Subscript(Subscript::Index { index }) => Some(call("subscript", vec![inner, index.clone()])),
        _ => None,
    })
}

fn rewrite(expr: &Expr) -> Option<Expr> {
    match expr {
        Expr::CompoundFieldAccess { .. } => access(expr),
        // A literal with a suffix.
        Expr::Cast { kind: CastKind::SafeCast, expr, data_type, array, format } => Some(Expr::Cast {
            kind: CastKind::Cast,
            expr: expr.clone(),
            data_type: data_type.clone(),
            array: *array,
            format: format.clone(),
        }),
        Expr::Cast { kind: CastKind::Cast | CastKind::TryCast, expr: of, data_type, .. }
            if !matches!(of.as_ref(), Expr::Value(_)) =>
        {
            let mut cast = expr.clone();
            if let Expr::Cast { expr, .. } = &mut cast {
                **expr = call(CAST_OPERAND, vec![of.as_ref().clone(), text(&data_type.to_string())]);
            }
            Some(cast)
        }
        Expr::RLike { negated, expr, pattern, .. } => {
            let matches = call("rlike", vec![expr.as_ref().clone(), pattern.as_ref().clone()]);
            Some(if *negated { not(matches) } else { matches })
        }
        Expr::Like { negated, expr, pattern, escape_char, .. } => {
            like("spark_like", *negated, expr, pattern, escape_char)
        }
        Expr::ILike { negated, expr, pattern, escape_char, .. } => {
            like("spark_ilike", *negated, expr, pattern, escape_char)
        }
        Expr::Interval(interval) => intervals::rewritten(interval),
        Expr::Struct { values, .. } => Some(struct_of(values)),
        Expr::Position { expr, r#in } => Some(call("locate", vec![expr.as_ref().clone(), r#in.as_ref().clone()])),
        Expr::Trim { expr, trim_where, trim_what, trim_characters: None } => {
            let name = match trim_where {
                Some(TrimWhereField::Leading) => "ltrim",
                Some(TrimWhereField::Trailing) => "rtrim",
                _ => "btrim",
            };
            let mut args: Vec<Expr> = vec![expr.as_ref().clone()];
            if let Some(what) = trim_what {
                // Spark's ltrim and rtrim take the characters first.
                args.insert(usize::from(name == "btrim"), what.as_ref().clone());
            }
            Some(call(name, args))
        }
        Expr::Substring { expr, substring_from, substring_for, .. } => {
            let mut args = vec![expr.as_ref().clone()];
            args.extend(substring_from.iter().chain(substring_for).map(|arg| arg.as_ref().clone()));
            Some(call("substring", args))
        }
        Expr::Overlay { expr, overlay_what, overlay_from, overlay_for } => {
            let mut args = vec![expr.as_ref().clone(), overlay_what.as_ref().clone(), overlay_from.as_ref().clone()];
            args.extend(overlay_for.iter().map(|arg| arg.as_ref().clone()));
            Some(call("overlay", args))
        }
        Expr::Ceil { expr, field } => Some(call("ceil", rounding(expr, field))),
        Expr::Floor { expr, field } => Some(call("floor", rounding(expr, field))),
        Expr::Extract { field, expr, .. } => {
            Some(call("date_part", vec![text(&field.to_string()), expr.as_ref().clone()]))
        }
        Expr::Array(array) => Some(call("array", array.elem.clone())),
        Expr::UnaryOp { op: UnaryOperator::BangNot, expr } => Some(not(expr.as_ref().clone())),
        // A text is a number here.
        Expr::UnaryOp { op: UnaryOperator::Minus, expr } if is_text(expr) => {
            Some(call("negative", vec![expr.as_ref().clone()]))
        }
        Expr::UnaryOp { op: UnaryOperator::Plus, expr } => Some(call("positive", vec![expr.as_ref().clone()])),
        Expr::UnaryOp { op: UnaryOperator::BitwiseNot, expr } => Some(call("bitwise_not", vec![expr.as_ref().clone()])),
        Expr::BinaryOp { left, op: BinaryOperator::PGBitwiseShiftLeft, right } => {
            Some(call("shiftleft", vec![left.as_ref().clone(), right.as_ref().clone()]))
        }
        Expr::BinaryOp { left, op: BinaryOperator::PGBitwiseShiftRight, right } => {
            Some(call("shiftright", vec![left.as_ref().clone(), right.as_ref().clone()]))
        }
        Expr::Function(function) if function.over.is_none() => {
            let name = function.name.to_string().to_lowercase();
            let args = arguments(function)?;
            if !function.within_group.is_empty() {
                return within_group(function, &name, args);
            }
            if let [of] = args.as_slice()
                && let Some((_, data_type)) = CASTS.iter().find(|(spark, _)| *spark == name)
            {
                let cast = Expr::Cast {
                    kind: CastKind::Cast,
                    expr: Box::new(of.clone()),
                    data_type: data_type.clone(),
                    array: false,
                    format: None,
                };
                return Some(rewrite(&cast).unwrap_or(cast));
            }
            if let (Some(unit), Some(own)) = (args.first().and_then(unit_of), with_unit(&name, args.len())) {
                let mut args = args.clone();
                args[0] = text(&unit);
                return Some(call(own, args));
            }
            match (name.as_str(), args.as_slice()) {
                ("nvl2", [of, then, otherwise]) => {
                    Some(case(Expr::IsNotNull(Box::new(of.clone())), then.clone(), Some(otherwise.clone())))
                }
                ("count_if", [condition]) => {
                    let one = Expr::Value(Value::Number("1".into(), false).with_empty_span());
                    let counted = vec![FunctionArg::Unnamed(FunctionArgExpr::Expr(case(condition.clone(), one, None)))];
                    Some(Expr::Function(with_arguments(function, "count", counted)))
                }
                // first(x, true): ignore NULL.
                ("first" | "last" | "any_value" | "first_value" | "last_value", [of, Expr::Value(ignore)]) => {
                    let Value::Boolean(ignore) = ignore.value else { return None };
                    let of = vec![FunctionArg::Unnamed(FunctionArgExpr::Expr(of.clone()))];
                    let mut function = with_arguments(function, &name, of);
                    function.null_treatment = ignore.then_some(NullTreatment::IgnoreNulls);
                    Some(Expr::Function(function))
                }
                // It is at least as exact as any error that is asked for.
                ("approx_count_distinct", [of, _]) => {
                    let of = vec![FunctionArg::Unnamed(FunctionArgExpr::Expr(of.clone()))];
                    Some(Expr::Function(with_arguments(function, &name, of)))
                }
                ("struct", _) => Some(struct_of(&args)),
                // The fields have the names of columns, or else are numbered.
                ("arrays_zip", _) => {
                    let named = args.iter().enumerate().flat_map(|(at, array)| {
                        let name = match array {
                            Expr::Identifier(name) => name.value.clone(),
                            Expr::CompoundIdentifier(parts) => {
                                parts.last().map(|name| name.value.clone()).unwrap_or_default()
                            }
                            _ => at.to_string(),
                        };
                        [text(&name), array.clone()]
                    });
                    Some(call("arrays_zip_named", named.collect()))
                }
                (UNSIGNED_SHIFT, _) => Some(call("shiftrightunsigned", args)),
                ("map", []) => {
                    Some(call("map_from_arrays", vec![call("array", Vec::new()), call("array", Vec::new())]))
                }
                // What `+` would be, where it is about times.
                ("try_add" | "try_subtract" | "try_multiply" | "try_divide", [left, right]) => Some(Expr::BinaryOp {
                    left: Box::new(left.clone()),
                    op: BinaryOperator::Custom(name.clone()),
                    right: Box::new(right.clone()),
                }),
                ("array_sort", [_, Expr::Lambda(_)]) => Some(call("array_sort_by", args)),
                ("if", [condition, then, otherwise]) => {
                    Some(case(condition.clone(), then.clone(), Some(otherwise.clone())))
                }
                ("isnull", [of]) => Some(Expr::IsNull(Box::new(of.clone()))),
                ("isnotnull", [of]) => Some(Expr::IsNotNull(Box::new(of.clone()))),
                ("ifnull" | "nvl", [_, _]) => Some(call("coalesce", args)),
                // Its type is that of the first value.
                ("nullif", [of, other]) => Some(null_if(of, other)),
                ("nullifzero", [of]) => Some(null_if(of, &number("0"))),
                ("zeroifnull", [of]) => Some(call("coalesce", vec![of.clone(), number("0")])),
                ("equal_null", [left, right]) => Some(Expr::BinaryOp {
                    left: Box::new(left.clone()),
                    op: BinaryOperator::Spaceship,
                    right: Box::new(right.clone()),
                }),
                ("decode", [of, rest @ ..]) if rest.len() > 1 => Some(decode(of, rest)),
                ("like", [_, _] | [_, _, _]) => Some(call("spark_like", args)),
                ("ilike", [_, _] | [_, _, _]) => Some(call("spark_ilike", args)),
                ("unix_timestamp" | "to_unix_timestamp", []) => Some(call(&name, vec![call("now", Vec::new())])),
                ("localtimestamp", []) => Some(Expr::Cast {
                    kind: CastKind::Cast,
                    expr: Box::new(call("now", Vec::new())),
                    data_type: DataType::TimestampNtz(None),
                    array: false,
                    format: None,
                }),
                _ => None,
            }
        }
        _ => None,
    }
}

fn is_text(expr: &Expr) -> bool {
    matches!(
        expr,
        Expr::Value(ValueWithSpan { value: Value::SingleQuotedString(_) | Value::DoubleQuotedString(_), .. })
    )
}

/// `f(…) WITHIN GROUP (ORDER BY key)` as a call with the key and whether it descends.
fn within_group(function: &Function, name: &str, args: Vec<Expr>) -> Option<Expr> {
    let truth = |value| Expr::Value(Value::Boolean(value).with_empty_span());
    let descends = |at: usize| function.within_group[at].options.asc == Some(false);
    let descending = descends(0);
    if (0..function.within_group.len()).any(|at| descends(at) != descending) {
        return None;
    }
    let key = match function.within_group.as_slice() {
        [key] => key.expr.clone(),
        keys => struct_of(&keys.iter().map(|key| key.expr.clone()).collect::<Vec<_>>()),
    };
    let args = match (name, args.as_slice()) {
        ("percentile_cont" | "percentile_disc", [fraction]) => vec![key, fraction.clone(), truth(descending)],
        ("mode", []) => vec![key, truth(true), truth(descending)],
        ("listagg" | "string_agg", [of]) => vec![of.clone(), text(""), key, truth(descending)],
        ("listagg" | "string_agg", [of, between]) => vec![of.clone(), between.clone(), key, truth(descending)],
        _ => return None,
    };
    let args = args.into_iter().map(|arg| FunctionArg::Unnamed(FunctionArgExpr::Expr(arg))).collect();
    Some(Expr::Function(Function { within_group: vec![], ..with_arguments(function, name, args) }))
}

/// Functions that are casts.
const CASTS: &[(&str, DataType)] = &[
    ("string", DataType::String(None)),
    ("boolean", DataType::Boolean),
    ("tinyint", DataType::TinyInt(None)),
    ("smallint", DataType::SmallInt(None)),
    ("int", DataType::Int(None)),
    ("bigint", DataType::BigInt(None)),
    ("float", DataType::Float(ExactNumberInfo::None)),
    ("double", DataType::Double(ExactNumberInfo::None)),
    ("decimal", DataType::Decimal(ExactNumberInfo::None)),
    ("binary", DataType::Binary(None)),
    ("date", DataType::Date),
    ("timestamp", DataType::Timestamp(None, TimezoneInfo::None)),
];

/// Functions whose first argument is a unit of time, as a word or a text.
fn with_unit(name: &str, arguments: usize) -> Option<&'static str> {
    match (name, arguments) {
        ("timestampadd" | "dateadd" | "date_add", 3) => Some("timestampadd"),
        ("timestampdiff" | "datediff" | "date_diff" | "timediff", 3) => Some("timestampdiff"),
        _ => None,
    }
}

fn unit_of(expr: &Expr) -> Option<String> {
    match expr {
        Expr::Identifier(unit) => Some(unit.value.clone()),
        _ => None,
    }
}

/// `x LIKE pattern`; of several patterns any, or all.
fn like(name: &str, negated: bool, of: &Expr, pattern: &Expr, escape: &Option<ValueWithSpan>) -> Option<Expr> {
    let one = |pattern: &Expr| {
        let mut args = vec![of.clone(), pattern.clone()];
        args.extend(escape.iter().map(|escape| Expr::Value(escape.clone())));
        let matches = call(name, args);
        if negated { not(matches) } else { matches }
    };
    let Expr::Function(function) = pattern else { return Some(one(pattern)) };
    let op = match function.name.to_string().trim_matches('`') {
        LIKE_ANY => BinaryOperator::Or,
        LIKE_ALL => BinaryOperator::And,
        _ => return Some(one(pattern)),
    };
    let mut patterns = arguments(function)?.into_iter();
    let first = one(&patterns.next()?);
    Some(Expr::Nested(Box::new(patterns.fold(first, |left, pattern| Expr::BinaryOp {
        left: Box::new(left),
        op: op.clone(),
        right: Box::new(one(&pattern)),
    }))))
}

fn not(expr: Expr) -> Expr {
    Expr::UnaryOp { op: UnaryOperator::Not, expr: Box::new(expr) }
}

fn number(value: &str) -> Expr {
    Expr::Value(Value::Number(value.into(), false).with_empty_span())
}

/// `struct(a, 1, x AS y)` as `named_struct('a', a, 'col2', 1, 'y', x)`
fn struct_of(values: &[Expr]) -> Expr {
    let pairs = values.iter().enumerate().flat_map(|(at, value)| {
        let (name, value) = match value {
            Expr::Named { expr, name } => (name.value.clone(), expr.as_ref().clone()),
            Expr::Identifier(name) => (name.value.clone(), value.clone()),
            Expr::CompoundIdentifier(parts) if !parts.is_empty() => {
                (parts.last().map(|name| name.value.clone()).unwrap_or_default(), value.clone())
            }
            // A field of a struct is a call already.
            Expr::Function(function) if function.name.to_string() == "get_field" => {
                let name = match arguments(function).as_deref() {
                    Some([_, Expr::Value(ValueWithSpan { value: Value::SingleQuotedString(name), .. })]) => {
                        name.clone()
                    }
                    _ => format!("col{}", at + 1),
                };
                (name, value.clone())
            }
            _ => (format!("col{}", at + 1), value.clone()),
        };
        [text(&name), value]
    });
    call("named_struct", pairs.collect())
}

/// `CASE WHEN of = other THEN NULL ELSE of END`
fn null_if(of: &Expr, other: &Expr) -> Expr {
    let (left, right) = (Box::new(of.clone()), Box::new(other.clone()));
    let null = Expr::Value(Value::Null.with_empty_span());
    case(Expr::BinaryOp { left, op: BinaryOperator::Eq, right }, null, Some(of.clone()))
}

/// `decode(x, a, b, …, otherwise)`, where NULL is equal to NULL.
fn decode(of: &Expr, rest: &[Expr]) -> Expr {
    let pairs = rest.chunks_exact(2);
    let otherwise = pairs.remainder().first().cloned();
    let conditions = pairs
        .map(|pair| CaseWhen {
            condition: Expr::BinaryOp {
                left: Box::new(of.clone()),
                op: BinaryOperator::Spaceship,
                right: Box::new(pair[0].clone()),
            },
            result: pair[1].clone(),
        })
        .collect();
    Expr::Case {
        case_token: AttachedToken::empty(),
        end_token: AttachedToken::empty(),
        operand: None,
        conditions,
        else_result: otherwise.map(Box::new),
    }
}

/// The arguments of `ceil` and `floor`.
fn rounding(expr: &Expr, field: &CeilFloorKind) -> Vec<Expr> {
    let mut args = vec![expr.clone()];
    if let CeilFloorKind::Scale(scale) = field {
        args.push(Expr::Value(scale.clone()));
    }
    args
}

/// The arguments of a plain call.
pub(super) fn arguments(function: &Function) -> Option<Vec<Expr>> {
    let FunctionArguments::List(FunctionArgumentList { duplicate_treatment: None, args, clauses }) = &function.args
    else {
        return None;
    };
    if !clauses.is_empty() {
        return None;
    }
    args.iter()
        .map(|arg| match arg {
            FunctionArg::Unnamed(FunctionArgExpr::Expr(expr)) => Some(expr.clone()),
            _ => None,
        })
        .collect()
}

/// The same call of another function.
pub(super) fn with_name(function: &Function, name: &str) -> Function {
    Function { name: ObjectName::from(vec![Ident::new(name)]), ..function.clone() }
}

fn with_arguments(function: &Function, name: &str, args: Vec<FunctionArg>) -> Function {
    Function {
        name: ObjectName::from(vec![Ident::new(name)]),
        args: FunctionArguments::List(FunctionArgumentList { duplicate_treatment: None, args, clauses: vec![] }),
        ..function.clone()
    }
}

/// `name(args)`
pub(super) fn call(name: &str, args: Vec<Expr>) -> Expr {
    Expr::Function(Function {
        name: ObjectName::from(vec![Ident::new(name)]),
        uses_odbc_syntax: false,
        parameters: FunctionArguments::None,
        args: FunctionArguments::List(FunctionArgumentList {
            duplicate_treatment: None,
            args: args.into_iter().map(|arg| FunctionArg::Unnamed(FunctionArgExpr::Expr(arg))).collect(),
            clauses: vec![],
        }),
        filter: None,
        null_treatment: None,
        over: None,
        within_group: vec![],
    })
}

/// `get_field(expr, 'name')`
pub(super) fn field_of(expr: Expr, name: &str) -> Expr {
    call("get_field", vec![expr, text(name)])
}

fn text(value: &str) -> Expr {
    Expr::Value(ValueWithSpan::from(Value::SingleQuotedString(value.to_owned())))
}

/// `CASE WHEN condition THEN then [ELSE otherwise] END`
fn case(condition: Expr, then: Expr, otherwise: Option<Expr>) -> Expr {
    Expr::Case {
        case_token: AttachedToken::empty(),
        end_token: AttachedToken::empty(),
        operand: None,
        conditions: vec![CaseWhen { condition, result: then }],
        else_result: otherwise.map(Box::new),
    }
}
