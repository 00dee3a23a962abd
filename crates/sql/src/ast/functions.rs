//! Functions and forms that are others in DataFusion.

use std::ops::ControlFlow;

use datafusion::common::DataFusionError;
use datafusion::sql::sqlparser::ast::{
    AccessExpr, CaseWhen, Expr, Function, FunctionArg, FunctionArgExpr, FunctionArgumentList, FunctionArguments, Ident,
    NullTreatment, ObjectName, Value, ValueWithSpan, VisitorMut, helpers::attached_token::AttachedToken,
};

/// Parts of dates: `year(x)` is `date_part('year', x)`.
const DATE_PARTS: &[(&str, &str)] = &[
    ("year", "year"),
    ("quarter", "quarter"),
    ("month", "month"),
    ("day", "day"),
    ("dayofmonth", "day"),
    ("dayofweek", "dayofweek"),
    ("dayofyear", "doy"),
    ("weekofyear", "week"),
];

/// Rewrites calls in place.
pub(crate) struct Functions;

impl VisitorMut for Functions {
    type Break = DataFusionError;

    fn post_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<DataFusionError> {
        if let Some(rewritten) = rewrite(expr) {
            *expr = rewritten;
        }
        ControlFlow::Continue(())
    }
}

fn rewrite(expr: &Expr) -> Option<Expr> {
    match expr {
        // (struct).field
        Expr::CompoundFieldAccess { root, access_chain } => {
            access_chain.iter().try_fold(root.as_ref().clone(), |inner, access| match access {
                AccessExpr::Dot(Expr::Identifier(field)) => Some(field_of(inner, &field.value)),
                _ => None,
            })
        }
        Expr::Function(function) if function.over.is_none() => {
            let name = function.name.to_string().to_lowercase();
            let args = arguments(function)?;
            if let Some((_, part)) = DATE_PARTS.iter().find(|(spark, _)| *spark == name)
                && let [of] = args.as_slice()
            {
                return Some(call("date_part", vec![text(part), of.clone()]));
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
                _ => None,
            }
        }
        _ => None,
    }
}

/// The arguments of a plain call.
fn arguments(function: &Function) -> Option<Vec<Expr>> {
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
