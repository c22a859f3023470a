import java.io.StringReader;
import java.io.StringWriter;
import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.sql.Statement;
import java.util.Properties;
import org.postgresql.PGConnection;
import org.postgresql.copy.CopyManager;

/** pgjdbc through the gateway: everything it needs comes from PG* variables. */
public class JdbcClient {
    public static void main(String[] arguments) throws Exception {
        // Twice each, so that the driver prepares on the server (prepareThreshold) and goes over to binary results.
        for (String mode : new String[] {"simple", "extended", "extendedForPrepared", "extendedCacheEverything"}) {
            run(mode);
        }
        System.out.println("ok");
    }

    static void run(String mode) throws Exception {
        Properties properties = new Properties();
        properties.setProperty("user", env("PGUSER"));
        properties.setProperty("password", env("PGPASSWORD"));
        properties.setProperty("sslmode", env("PGSSLMODE"));
        if (System.getenv("PGSSLROOTCERT") != null) {
            properties.setProperty("sslrootcert", env("PGSSLROOTCERT"));
        }
        properties.setProperty("preferQueryMode", mode);
        properties.setProperty("prepareThreshold", "2");
        String url = "jdbc:postgresql://localhost:" + env("PGPORT") + "/" + env("PGDATABASE");
        try (Connection connection = DriverManager.getConnection(url, properties)) {
            try (Statement statement = connection.createStatement()) {
                statement.execute("create temp table t (id int, v text)");
            }
            // A batch is a pipeline; a rewritten result set of parameters too.
            try (PreparedStatement insert = connection.prepareStatement("insert into t values (?, ?)")) {
                for (int id = 0; id < 500; id++) {
                    insert.setInt(1, id);
                    insert.setString(2, "ü" + id);
                    insert.addBatch();
                }
                check(insert.executeBatch().length == 500, "batch");
            }
            try (PreparedStatement select = connection.prepareStatement("select v from t where id = ?")) {
                for (int id = 0; id < 20; id++) {
                    select.setInt(1, id);
                    try (ResultSet rows = select.executeQuery()) {
                        check(rows.next() && rows.getString(1).equals("ü" + id), "prepared " + id);
                    }
                }
            }
            connection.setAutoCommit(false);
            try (Statement portal = connection.createStatement()) {
                // A cursor's portions, in a transaction.
                portal.setFetchSize(50);
                int count = 0;
                try (ResultSet rows = portal.executeQuery("select id from t order by id")) {
                    while (rows.next()) {
                        count++;
                    }
                }
                check(count == 500, "portions: " + count);
            }
            connection.commit();
            connection.setAutoCommit(true);
            if (!mode.equals("simple")) {
                copy(connection);
            }
            try (Statement wrong = connection.createStatement()) {
                wrong.execute("select 1/0");
                throw new AssertionError("no error");
            } catch (SQLException error) {
                check("22012".equals(error.getSQLState()), error.toString());
            }
            // The driver's own time-out sends a CancelRequest on a connection of its own.
            try (Statement slow = connection.createStatement()) {
                slow.setQueryTimeout(1);
                slow.execute("select pg_sleep(30)");
                throw new AssertionError("not cancelled");
            } catch (SQLException error) {
                check("57014".equals(error.getSQLState()), error.toString());
            }
            check(connection.isValid(5), "the connection after all that");
        }
    }

    static void copy(Connection connection) throws Exception {
        CopyManager copy = connection.unwrap(PGConnection.class).getCopyAPI();
        StringBuilder lines = new StringBuilder();
        for (int id = 500; id < 2500; id++) {
            lines.append(id).append('\t').append("x".repeat(100)).append('\n');
        }
        check(copy.copyIn("copy t from stdin", new StringReader(lines.toString())) == 2000, "copy in");
        StringWriter out = new StringWriter();
        check(copy.copyOut("copy t to stdout", out) == 2500, "copy out");
    }

    static String env(String name) {
        return System.getenv(name);
    }

    static void check(boolean holds, String what) {
        if (!holds) {
            throw new AssertionError(what);
        }
    }
}
