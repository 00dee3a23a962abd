import json, sys, base64, datetime, decimal, math
from pyspark.sql import SparkSession
from pyspark.sql.types import *
tz = sys.argv[3] if len(sys.argv) > 3 else "UTC"
spark = (SparkSession.builder.master("local[1]").config("spark.ui.enabled","false").config("spark.driver.memory","1g")
  .config("spark.sql.shuffle.partitions","2").config("spark.sql.session.timeZone",tz).getOrCreate())
spark.sparkContext.setLogLevel("OFF")
TABLES = {
 "t": ("ti TINYINT, sm SMALLINT, i INT, i2 INT, b BIGINT, f FLOAT, d DOUBLE, dec DECIMAL(10,2), dec2 DECIMAL(6,3), str STRING, num1 STRING, bo BOOLEAN, dt DATE, ts TIMESTAMP, bin BINARY, ai ARRAY<INT>, sa ARRAY<STRING>, m MAP<STRING,INT>, st STRUCT<a:INT,b:STRING>, js STRING",
  [
   [5,100,1,2,10,1.5,2.5,"12.50","1.125","abc"," 5 ",True,"2024-02-29","2024-02-29T10:11:12.345678Z","YWJj",[1,2,3],["x","y"],[{"key":"a","value":1},{"key":"b","value":2}],{"a":1,"b":"x"},'{"a": 1, "b": "x"}'],
   [-3,-7,-7,3,1709201472,-0.25,-3.5,"-7.25","-2.500","Hello World","42",False,"2023-12-31","2023-12-31T23:59:59Z","/wA=",[3,None,1,1],[None,"b"],[{"key":"a","value":None}],{"a":None,"b":None},'{"a": "z", "b": [1, 2.50, {"c": null}]}'],
   [None]*20,
   [7,32,0,5,3,100.125,0.1,"0.05","0.001","","7",None,"1999-07-04","1999-07-04T00:00:00.5Z","",[0],["zz"],[{"key":"a","value":5}],{"a":9,"b":"yy"},"not json"],
  ])}
def val(v, t):
    if v is None: return None
    if isinstance(t,(FloatType,DoubleType)):
        if math.isnan(v): return "NaN"
        if math.isinf(v): return "Infinity" if v>0 else "-Infinity"
        return v
    if isinstance(t,DecimalType): return format(v,'f')
    if isinstance(t,TimestampType):
        u=v.astimezone(datetime.timezone.utc); s=u.strftime('%Y-%m-%dT%H:%M:%S').rjust(19,'0')
        return s+(('.%06d'%u.microsecond) if u.microsecond else '')+'Z'
    if isinstance(t,TimestampNTZType):
        return v.strftime('%Y-%m-%dT%H:%M:%S').rjust(19,'0')+(('.%06d'%v.microsecond) if v.microsecond else '')+'Z'
    if isinstance(t,DateType): return v.isoformat()
    if isinstance(t,BinaryType): return base64.b64encode(bytes(v)).decode()
    if isinstance(t,ArrayType): return [val(x,t.elementType) for x in v]
    if isinstance(t,MapType): return sorted([{"key":val(k,t.keyType),"value":val(x,t.valueType)} for k,x in v.items()], key=lambda e: json.dumps(e))
    if isinstance(t,StructType): return {f.name: val(x,f.dataType) for f,x in zip(t.fields, v)}
    if isinstance(t,(IntegerType,LongType,ShortType,ByteType,StringType,BooleanType)): return v
    return str(v)
for n,(ddl,rows) in TABLES.items():
    lines=[json.dumps(dict(zip([c.strip().split(' ')[0] for c in ddl.replace('(10,2)','').replace('(6,3)','').replace('MAP<STRING,INT>','M').replace('<a:INT,b:STRING>','').split(',')],r))) for r in rows]
    # maps as objects for the reader
    objs=[]
    for l in lines:
        o=json.loads(l)
        if o.get("m"): o["m"]={e["key"]:e["value"] for e in o["m"]}
        objs.append(json.dumps(o))
    df=spark.read.option("timeZone","UTC").schema(ddl).json(spark.sparkContext.parallelize(objs,1))
    rows2=df.collect()
    spark.createDataFrame(rows2, df.schema).coalesce(1).createOrReplaceTempView(n)
import re
def err(e):
    c=None
    for m in ("getCondition","getErrorClass"):
        try: c=getattr(e,m)(); 
        except Exception: pass
        if c: break
    msg=str(e)
    if not c:
        m=re.search(r"\[([A-Z][A-Z0-9_.]+)\]",msg); c=m.group(1) if m else type(e).__name__
    return c, msg.strip().split("\n")[0][:300]
groups={}; cur=None
for line in open(sys.argv[1]):
    line=line.rstrip("\n")
    if not line.strip(): continue
    if line.startswith("# "): cur=line[2:]; groups[cur]=[]; continue
    sql=line if line.startswith("SELECT ") or line.startswith("WITH ") else "SELECT "+line+" FROM t"
    case={"sql":sql}
    try:
        df=spark.sql(sql)
        fields=df.schema.fields
        case["columns"]=[{"name":f.name,"type":f.dataType.simpleString()} for f in fields]
        rows=df.collect()
        case["rows"]=[[val(x,f.dataType) for x,f in zip(r,fields)] for r in rows]
    except Exception as e:
        case.pop("rows",None)
        case["error"],case["message"]=err(e)
    groups[cur].append(case)
    print(line, "->", case.get("columns",[{}])[0].get("type") if case.get("columns") else None, case.get("rows", case.get("error")), file=sys.stderr)
out={"time_zone":tz,"tables":{n:{"schema":d,"rows":[dict(zip([c.strip().split(' ')[0] for c in d.replace('(10,2)','').replace('(6,3)','').replace('MAP<STRING,INT>','M').replace('<a:INT,b:STRING>','').split(',')],r)) for r in rs]} for n,(d,rs) in TABLES.items()},"groups":groups}
d=sys.argv[2]
for g,cases in groups.items():
    with open(f"{d}/{g}.json","w") as fh:
        fh.write('{\n"time_zone": '+json.dumps(tz)+',\n"tables": '+json.dumps(out["tables"],ensure_ascii=False)+',\n"cases": [\n')
        fh.write(",\n".join(json.dumps(c,ensure_ascii=False) for c in cases)); fh.write("\n]}\n")
