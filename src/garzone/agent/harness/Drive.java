// Calls methods of a translated class with recorded arguments; the calls are written in by translation/java.py.
// To $GARZONE_OUT, as JSON: {"results": {name: [{"result": ...} | {"throws": text} | {"missing": true}, ...]}}.
package garzone_drive;

public class Drive {
    interface Case { Object get() throws Throwable; }
    static final java.util.Map<String, Case[]> CASES = new java.util.LinkedHashMap<>();
    static final class Missing extends RuntimeException {}

// METHODS

    static Object call(String name, Class<?>[] kinds, Object[] given) throws Throwable {
        java.lang.reflect.Method method;
        try {
            method = Class.forName("HOLDER").getMethod(name, kinds);
        } catch (NoSuchMethodException problem) {
            throw new Missing();
        }
        try {
            return method.invoke(null, given);
        } catch (java.lang.reflect.InvocationTargetException problem) {
            throw problem.getCause();
        }
    }

    @SafeVarargs
    static <T> java.util.List<T> list(T... items) {
        return new java.util.ArrayList<>(java.util.Arrays.asList(items));
    }

    @SuppressWarnings("unchecked")
    static <T> java.util.Map<String, T> map(Class<?> kind, Object... pairs) {
        java.util.Map<String, T> found = new java.util.LinkedHashMap<>();
        for (int at = 0; at < pairs.length; at += 2) found.put((String) pairs[at], (T) pairs[at + 1]);
        return found;
    }

    static void json(Object value, StringBuilder out) {
        if (value == null) {
            out.append("null");
        } else if (value instanceof Double && (((Double) value).isNaN() || ((Double) value).isInfinite())) {
            out.append("{\"special\": \"").append(value).append("\"}");
        } else if (value instanceof Number || value instanceof Boolean) {
            out.append(value);
        } else if (value instanceof java.util.Map) {
            out.append('{');
            String between = "";
            for (java.util.Map.Entry<?, ?> entry : ((java.util.Map<?, ?>) value).entrySet()) {
                out.append(between);
                json(String.valueOf(entry.getKey()), out);
                out.append(':');
                json(entry.getValue(), out);
                between = ",";
            }
            out.append('}');
        } else if (value instanceof Iterable) {
            out.append('[');
            String between = "";
            for (Object item : (Iterable<?>) value) {
                out.append(between);
                json(item, out);
                between = ",";
            }
            out.append(']');
        } else {
            out.append('"');
            for (char c : String.valueOf(value).toCharArray()) {
                if (c < ' ' || c > '~' || c == '"' || c == '\\') out.append(String.format("\\u%04x", (int) c));
                else out.append(c);
            }
            out.append('"');
        }
    }

    public static void main(String[] arguments) throws Exception {
// LISTED
        StringBuilder out = new StringBuilder("{\"results\": {");
        String next = "";
        for (java.util.Map.Entry<String, Case[]> entry : CASES.entrySet()) {
            out.append(next).append('"').append(entry.getKey()).append("\": [");
            String between = "";
            for (Case one : entry.getValue()) {
                out.append(between);
                between = ",";
                StringBuilder said = new StringBuilder();
                try {
                    json(one.get(), said.append("{\"result\": "));
                    out.append(said).append('}');
                } catch (Missing problem) {
                    out.append("{\"missing\": true}");
                } catch (Throwable problem) {
                    said = new StringBuilder();
                    json(problem.toString(), said.append("{\"throws\": "));
                    out.append(said).append('}');
                }
            }
            out.append(']');
            next = ",";
        }
        out.append("}}");
        java.nio.file.Files.writeString(java.nio.file.Path.of(System.getenv("GARZONE_OUT")), out);
        System.exit(0);
    }
}
