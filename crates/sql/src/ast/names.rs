//! How Spark names a column that the query gives no name.

use std::ops::ControlFlow;

use datafusion::sql::sqlparser::ast::{
    AccessExpr, BinaryOperator, CastKind, CeilFloorKind, DataType, DuplicateTreatment, ExactNumberInfo, Expr, Function,
    FunctionArg, FunctionArgExpr, FunctionArguments, Interval, Subscript, TimezoneInfo, TrimWhereField, UnaryOperator,
    Value, ValueWithSpan, VisitMut, VisitorMut,
};

use crate::functions::cast::show;

/// Functions that Spark prints in capitals.
const CAPITALS: &[&str] = &[
    "signum",
    "sqrt",
    "cbrt",
    "exp",
    "expm1",
    "log",
    "log2",
    "log10",
    "log1p",
    "power",
    "sin",
    "cos",
    "tan",
    "asin",
    "acos",
    "atan",
    "atan2",
    "sinh",
    "cosh",
    "tanh",
    "asinh",
    "acosh",
    "atanh",
    "cot",
    "sec",
    "csc",
    "degrees",
    "radians",
    "pi",
    "e",
    "hypot",
    "rlike",
    "regexp_like",
    "regexp",
];

/// Functions that Spark prints under another name.
const RENAMED: &[(&str, &str)] =
    &[("array_agg", "collect_list"), ("dateadd", "date_add"), ("ceiling", "ceil"), ("mean", "mean")];

/// Functions that cast.
const CASTS: &[&str] = &[
    "string",
    "boolean",
    "tinyint",
    "smallint",
    "int",
    "bigint",
    "float",
    "double",
    "decimal",
    "binary",
    "date",
    "timestamp",
];

/// The name of a column of a SELECT, if it is not the expression's own text: a cast of a column has the column's name.
pub(super) fn cast_column(expr: &Expr) -> Option<String> {
    let inner = match expr {
        Expr::Cast { kind, expr, .. } if *kind != CastKind::SafeCast => expr.as_ref(),
        Expr::Function(function) => {
            match (CASTS.contains(&lower_name(function).as_str()), arguments(function).as_slice()) {
                (true, [inner]) => *inner,
                _ => return None,
            }
        }
        _ => return None,
    };
    match inner {
        Expr::Identifier(name) => Some(name.value.clone()),
        Expr::CompoundIdentifier(parts) => parts.last().map(|name| name.value.clone()),
        _ => None,
    }
}

fn lower_name(function: &Function) -> String {
    function.name.to_string().replace('`', "").to_lowercase()
}

fn arguments(function: &Function) -> Vec<&Expr> {
    let FunctionArguments::List(list) = &function.args else { return Vec::new() };
    list.args
        .iter()
        .filter_map(|arg| match arg {
            FunctionArg::Unnamed(FunctionArgExpr::Expr(expr)) => Some(expr),
            _ => None,
        })
        .collect()
}

/// Functions that Spark prints as something else, or with the arguments that were left out.
fn special(name: &str, args: &[&Expr]) -> Option<String> {
    Some(match (name, args) {
        (name, [of]) if CASTS.contains(&name) => pretty(of),
        ("window", _) => "window".to_owned(),
        ("isnull", [of]) => format!("({} IS NULL)", pretty(of)),
        ("isnotnull", [of]) => format!("({} IS NOT NULL)", pretty(of)),
        ("if", [condition, then, otherwise]) => {
            format!("(IF({}, {}, {}))", pretty(condition), pretty(then), pretty(otherwise))
        }
        ("positive", [of]) => format!("(+ {})", pretty(of)),
        ("log", [of]) => format!("LOG(E(), {})", pretty(of)),
        ("round" | "bround", [of]) => format!("{name}({}, 0)", pretty(of)),
        ("ceil", [of]) => format!("CEIL({})", pretty(of)),
        ("ceiling", [of]) => format!("ceiling({})", pretty(of)),
        // Schemas and options are no arguments in print.
        ("from_json" | "from_csv" | "to_json" | "to_csv" | "schema_of_json" | "schema_of_csv", [of, ..]) => {
            format!("{name}({})", pretty(of))
        }
        ("aggregate" | "reduce", [of, start, merge]) => {
            let finish = format!("lambdafunction({VARIABLE}, {VARIABLE})");
            format!("{name}({}, {}, {}, {finish})", pretty(of), pretty(start), pretty(merge))
        }
        ("unix_timestamp" | "to_unix_timestamp", [of]) => format!("{name}({}, yyyy-MM-dd HH:mm:ss)", pretty(of)),
        ("datepart", [field, of]) => format!("datepart({} FROM {})", pretty(field), pretty(of)),
        ("dateadd" | "date_add" | "timestampadd", [unit, count, of]) => {
            format!("timestampadd({}, {}, {})", pretty(unit), pretty(count), pretty(of))
        }
        ("datediff" | "date_diff" | "timediff" | "timestampdiff", [unit, start, end]) => {
            format!("timestampdiff({}, {}, {})", pretty(unit), pretty(start), pretty(end))
        }
        ("percentile_approx" | "approx_percentile", [of, at]) => {
            format!("{name}({}, {}, 10000)", pretty(of), pretty(at))
        }
        ("listagg" | "string_agg", [of]) => format!("{name}({}, NULL)", pretty(of)),
        ("str_to_map", [of]) => format!("str_to_map({}, ,, :)", pretty(of)),
        ("regexp_instr", [of, pattern]) => format!("regexp_instr({}, {}, 0)", pretty(of), pretty(pattern)),
        ("sentences", [of]) => format!("sentences({}, , )", pretty(of)),
        ("overlay", [of, with, from]) => format!("overlay({}, {}, {}, -1)", pretty(of), pretty(with), pretty(from)),
        (super::tokens::UNSIGNED_SHIFT, [of, by]) => format!("({} >>> {})", pretty(of), pretty(by)),
        ("floor", [of]) => format!("FLOOR({})", pretty(of)),
        ("lpad" | "rpad", [of, length]) => format!("{name}({}, {},  )", pretty(of), pretty(length)),
        ("ltrim", [what, of]) => format!("TRIM(LEADING {} FROM {})", pretty(what), pretty(of)),
        ("rtrim", [what, of]) => format!("TRIM(TRAILING {} FROM {})", pretty(what), pretty(of)),
        ("locate" | "position", [what, of]) => format!("{name}({}, {}, 1)", pretty(what), pretty(of)),
        ("from_unixtime", [of]) => format!("from_unixtime({}, yyyy-MM-dd HH:mm:ss)", pretty(of)),
        ("regexp_extract" | "regexp_extract_all", [of, pattern]) => {
            format!("{name}({}, {}, 1)", pretty(of), pretty(pattern))
        }
        ("regexp_replace", [of, pattern, by]) => {
            format!("regexp_replace({}, {}, {}, 1)", pretty(of), pretty(pattern), pretty(by))
        }
        ("replace", [of, what]) => format!("replace({}, {}, )", pretty(of), pretty(what)),
        ("split", [of, pattern]) => format!("split({}, {}, -1)", pretty(of), pretty(pattern)),
        ("substring" | "substr", [of, from]) => format!("{name}({}, {}, 2147483647)", pretty(of), pretty(from)),
        ("sort_array", [of]) => format!("sort_array({}, true)", pretty(of)),
        ("months_between", [end, start]) => format!("months_between({}, {}, true)", pretty(end), pretty(start)),
        _ => return None,
    })
}

/// A lambda, whose parameters have no names in print.
fn lambda(expr: &Expr) -> String {
    let names = super::generators::lambda_parameters(expr);
    let Expr::Lambda(lambda) = expr else { return String::new() };
    struct Variables<'a>(&'a [&'a str]);
    impl VisitorMut for Variables<'_> {
        type Break = ();
        fn pre_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
            match expr {
                Expr::Identifier(name) if self.0.contains(&name.value.as_str()) => {
                    name.value = VARIABLE.to_owned();
                }
                Expr::CompoundIdentifier(parts)
                    if parts.first().is_some_and(|name| self.0.contains(&name.value.as_str())) =>
                {
                    parts[0].value = VARIABLE.to_owned();
                }
                _ => {}
            }
            ControlFlow::Continue(())
        }
    }
    let mut body = lambda.body.as_ref().clone();
    let _ = body.visit(&mut Variables(&names));
    let variables = vec![VARIABLE; names.len()].join(", ");
    format!("lambdafunction({}, {variables})", pretty(&body))
}

const VARIABLE: &str = "namedlambdavariable()";

/// An interval of one unit.
fn interval(interval: &Interval) -> String {
    let value = pretty(&interval.value);
    let Some(unit) = &interval.leading_field else { return format!("INTERVAL '{value}'") };
    let unit = unit.to_string().to_uppercase();
    let unit = unit.trim_end_matches('S');
    if let Some(last) = &interval.last_field {
        return format!("INTERVAL '{value}' {unit} TO {last}");
    }
    let number: f64 = value.parse().unwrap_or(0.0);
    match unit {
        "WEEK" => format!("INTERVAL '{}' DAY", number * 7.0),
        "HOUR" | "MINUTE" => format!("INTERVAL '{number:02}' {unit}"),
        "SECOND" | "MILLISECOND" | "MICROSECOND" => {
            let seconds = match unit {
                "SECOND" => number,
                "MILLISECOND" => number / 1e3,
                _ => number / 1e6,
            };
            let text = format!("{seconds}");
            let padded =
                if text.split('.').next().is_some_and(|whole| whole.len() < 2) { format!("0{text}") } else { text };
            format!("INTERVAL '{padded}' SECOND")
        }
        _ => format!("INTERVAL '{value}' {unit}"),
    }
}

/// An expression as Spark prints it in column names.
pub(super) fn pretty(expr: &Expr) -> String {
    match expr {
        Expr::Identifier(ident) => ident.value.clone(),
        Expr::CompoundIdentifier(parts) => parts.iter().map(|ident| ident.value.as_str()).collect::<Vec<_>>().join("."),
        Expr::Nested(inner) => pretty(inner),
        Expr::Value(ValueWithSpan { value, .. }) => literal(value),
        Expr::TypedString(typed) => {
            let text = typed.value.clone().into_string().unwrap_or_default();
            format!("{} '{text}'", type_name(&typed.data_type))
        }
        Expr::BinaryOp { left, op, right } => match op {
            BinaryOperator::StringConcat => format!("concat({}, {})", pretty(left), pretty(right)),
            BinaryOperator::NotEq => format!("(NOT ({} = {}))", pretty(left), pretty(right)),
            BinaryOperator::MyIntegerDivide => format!("({} div {})", pretty(left), pretty(right)),
            op if is_interval(right) || is_interval(left) => {
                format!("{} {} {}", pretty(left), operator(op), pretty(right))
            }
            op => format!("({} {} {})", pretty(left), operator(op), pretty(right)),
        },
        Expr::UnaryOp { op, expr } => match op {
            UnaryOperator::Minus => match unsigned_literal(expr) {
                Some(number) => format!("-{number}"),
                None => format!("(- {})", pretty(expr)),
            },
            UnaryOperator::Plus => format!("(+ {})", pretty(expr)),
            UnaryOperator::Not => format!("(NOT {})", pretty(expr)),
            UnaryOperator::BitwiseNot => format!("~{}", pretty(expr)),
            op => format!("({op} {})", pretty(expr)),
        },
        // A literal with a suffix.
        Expr::Cast { kind: CastKind::SafeCast, expr, data_type, .. } => suffixed(expr, data_type),
        Expr::Cast { kind, expr, data_type, .. } => {
            let name = if matches!(kind, CastKind::TryCast) { "TRY_CAST" } else { "CAST" };
            format!("{name}({} AS {})", pretty(expr), type_name(data_type))
        }
        Expr::IsNull(inner) => format!("({} IS NULL)", pretty(inner)),
        Expr::IsNotNull(inner) => format!("({} IS NOT NULL)", pretty(inner)),
        Expr::IsTrue(inner) => format!("({} <=> true)", pretty(inner)),
        Expr::IsFalse(inner) => format!("({} <=> false)", pretty(inner)),
        Expr::IsNotTrue(inner) => format!("(NOT ({} <=> true))", pretty(inner)),
        Expr::IsNotFalse(inner) => format!("(NOT ({} <=> false))", pretty(inner)),
        Expr::IsUnknown(inner) => format!("({} IS NULL)", pretty(inner)),
        Expr::IsNotUnknown(inner) => format!("({} IS NOT NULL)", pretty(inner)),
        Expr::IsDistinctFrom(left, right) => format!("(NOT ({} <=> {}))", pretty(left), pretty(right)),
        Expr::IsNotDistinctFrom(left, right) => format!("({} <=> {})", pretty(left), pretty(right)),
        Expr::Between { expr, negated, low, high } => {
            let between = format!("between({}, {}, {})", pretty(expr), pretty(low), pretty(high));
            negate(between, *negated)
        }
        Expr::InList { expr, list, negated } => negate(format!("({} IN ({}))", pretty(expr), listed(list)), *negated),
        Expr::Like { negated, expr, pattern, .. } => {
            negate(format!("{} LIKE {}", pretty(expr), pretty(pattern)), *negated)
        }
        Expr::ILike { negated, expr, pattern, .. } => {
            negate(format!("ilike({}, {})", pretty(expr), pretty(pattern)), *negated)
        }
        Expr::RLike { negated, expr, pattern, .. } => {
            negate(format!("RLIKE({}, {})", pretty(expr), pretty(pattern)), *negated)
        }
        Expr::Case { operand, conditions, else_result, .. } => {
            let mut text = "CASE".to_owned();
            for when in conditions {
                let condition = match operand {
                    Some(operand) => format!("({} = {})", pretty(operand), pretty(&when.condition)),
                    None => pretty(&when.condition),
                };
                text.push_str(&format!(" WHEN {condition} THEN {}", pretty(&when.result)));
            }
            if let Some(otherwise) = else_result {
                text.push_str(&format!(" ELSE {}", pretty(otherwise)));
            }
            text + " END"
        }
        Expr::CompoundFieldAccess { root, access_chain } => {
            access_chain.iter().fold(pretty(root), |text, access| match access {
                AccessExpr::Dot(field) => format!("{text}.{}", pretty(field)),
                AccessExpr::Subscript(Subscript::Index { index }) => format!("{text}[{}]", pretty(index)),
                AccessExpr::Subscript(other) => format!("{text}[{other}]"),
            })
        }
        Expr::Lambda(_) => lambda(expr),
        Expr::Array(array) => format!("array({})", listed(&array.elem)),
        Expr::Struct { values, .. } => format!("struct({})", struct_fields(values)),
        Expr::Named { expr, name } => format!("{} AS {}", pretty(expr), name.value),
        Expr::Extract { field, expr, .. } => format!("extract({field} FROM {})", pretty(expr)),
        Expr::Trim { expr, trim_where, trim_what, .. } => {
            let side = match trim_where {
                Some(TrimWhereField::Leading) => "LEADING",
                Some(TrimWhereField::Trailing) => "TRAILING",
                _ => "BOTH",
            };
            match trim_what {
                Some(what) => format!("TRIM({side} {} FROM {})", pretty(what), pretty(expr)),
                None if trim_where.is_none() => format!("trim({})", pretty(expr)),
                None => format!("TRIM({side} FROM {})", pretty(expr)),
            }
        }
        Expr::Substring { expr, substring_from, substring_for, shorthand, .. } => {
            let mut args = vec![pretty(expr)];
            match substring_from {
                Some(from) => args.push(pretty(from)),
                None => args.push("1".to_owned()),
            }
            args.push(substring_for.as_deref().map_or("2147483647".to_owned(), pretty));
            format!("{}({})", if *shorthand { "substr" } else { "substring" }, args.join(", "))
        }
        Expr::Overlay { expr, overlay_what, overlay_from, overlay_for } => format!(
            "overlay({}, {}, {}, {})",
            pretty(expr),
            pretty(overlay_what),
            pretty(overlay_from),
            overlay_for.as_deref().map_or("-1".to_owned(), pretty)
        ),
        Expr::Position { expr, r#in } => format!("locate({}, {}, 1)", pretty(expr), pretty(r#in)),
        Expr::Ceil { expr, field } => rounded("CEIL", expr, field),
        Expr::Floor { expr, field } => rounded("FLOOR", expr, field),
        Expr::Interval(written) => interval(written),
        Expr::Function(function) => {
            let name = lower_name(function);
            if function.over.is_none()
                && let Some(special) = special(&name, &arguments(function))
            {
                return special;
            }
            let mut args = match &function.args {
                FunctionArguments::List(list) => {
                    let args = list
                        .args
                        .iter()
                        .map(|arg| match arg {
                            FunctionArg::Unnamed(FunctionArgExpr::Expr(expr)) => pretty(expr),
                            FunctionArg::Unnamed(FunctionArgExpr::Wildcard) if name == "count" => "1".to_owned(),
                            arg => arg.to_string(),
                        })
                        .collect::<Vec<_>>()
                        .join(", ");
                    match list.duplicate_treatment {
                        Some(DuplicateTreatment::Distinct) => format!("DISTINCT {args}"),
                        _ => args,
                    }
                }
                FunctionArguments::None => String::new(),
                FunctionArguments::Subquery(query) => query.to_string(),
            };
            if name == "struct"
                && let FunctionArguments::List(list) = &function.args
            {
                let values: Vec<Expr> = list
                    .args
                    .iter()
                    .filter_map(|arg| match arg {
                        FunctionArg::Unnamed(FunctionArgExpr::Expr(expr)) => Some(expr.clone()),
                        _ => None,
                    })
                    .collect();
                args = struct_fields(&values);
            }
            let capitals = name.to_uppercase();
            let name = match RENAMED.iter().find(|(written, _)| *written == name) {
                Some((_, printed)) => printed,
                None if CAPITALS.contains(&name.as_str()) => capitals.as_str(),
                None => name.as_str(),
            };
            let call = format!("{name}({args})");
            match &function.filter {
                Some(filter) => format!("{call} FILTER (WHERE {})", pretty(filter)),
                None => call,
            }
        }
        expr => expr.to_string(),
    }
}

fn listed(exprs: &[Expr]) -> String {
    exprs.iter().map(pretty).collect::<Vec<_>>().join(", ")
}

fn struct_fields(values: &[Expr]) -> String {
    listed(values)
}

fn negate(text: String, negated: bool) -> String {
    if negated { format!("(NOT {text})") } else { text }
}

fn rounded(name: &str, expr: &Expr, field: &CeilFloorKind) -> String {
    match field {
        CeilFloorKind::Scale(scale) => format!("{}({}, {})", name.to_lowercase(), pretty(expr), literal(&scale.value)),
        CeilFloorKind::DateTimeField(_) => format!("{name}({})", pretty(expr)),
    }
}

fn is_interval(expr: &Expr) -> bool {
    matches!(expr, Expr::Interval(_))
}

fn operator(op: &BinaryOperator) -> String {
    match op {
        BinaryOperator::Spaceship => "<=>".to_owned(),
        op => op.to_string(),
    }
}

fn literal(value: &Value) -> String {
    match value {
        Value::SingleQuotedString(text) | Value::DoubleQuotedString(text) => text.clone(),
        Value::Null => "NULL".to_owned(),
        Value::Boolean(value) => value.to_string(),
        Value::HexStringLiteral(digits) => format!("X'{digits}'"),
        value => value.to_string(),
    }
}

/// A number literal without a sign.
fn unsigned_literal(expr: &Expr) -> Option<String> {
    match expr {
        Expr::Value(ValueWithSpan { value: value @ Value::Number(..), .. }) => Some(literal(value)),
        Expr::Cast { kind: CastKind::SafeCast, expr, data_type, .. } => Some(suffixed(expr, data_type)),
        _ => None,
    }
}

/// A literal with a suffix or an exponent, as its value prints.
fn suffixed(expr: &Expr, data_type: &DataType) -> String {
    let digits = match expr {
        Expr::Value(ValueWithSpan { value, .. }) => literal(value),
        other => pretty(other),
    };
    let mut text = String::new();
    match (data_type, digits.parse::<f64>(), digits.parse::<f32>()) {
        (DataType::Double(_), Ok(value), _) => show::double(value, &mut text),
        (DataType::Float(_), _, Ok(value)) => show::float(value, &mut text),
        _ => return digits,
    }
    text
}

/// A type as Spark prints it.
fn type_name(data_type: &DataType) -> String {
    match data_type {
        DataType::Varchar(_) | DataType::Char(_) | DataType::String(_) | DataType::Text => "STRING".to_owned(),
        DataType::Integer(_) | DataType::Int(_) => "INT".to_owned(),
        DataType::Decimal(ExactNumberInfo::None)
        | DataType::Dec(ExactNumberInfo::None)
        | DataType::Numeric(ExactNumberInfo::None) => "DECIMAL(10,0)".to_owned(),
        DataType::Decimal(ExactNumberInfo::Precision(precision))
        | DataType::Dec(ExactNumberInfo::Precision(precision))
        | DataType::Numeric(ExactNumberInfo::Precision(precision)) => format!("DECIMAL({precision},0)"),
        DataType::Decimal(ExactNumberInfo::PrecisionAndScale(precision, scale))
        | DataType::Dec(ExactNumberInfo::PrecisionAndScale(precision, scale))
        | DataType::Numeric(ExactNumberInfo::PrecisionAndScale(precision, scale)) => {
            format!("DECIMAL({precision},{scale})")
        }
        DataType::Timestamp(_, TimezoneInfo::None) => "TIMESTAMP".to_owned(),
        DataType::Real => "FLOAT".to_owned(),
        other => other.to_string().to_uppercase(),
    }
}
